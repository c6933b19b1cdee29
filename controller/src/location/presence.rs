//! Which clusters use a location. Each leaves a note beside the backups, in a directory that Velero allows; one that is young enough says
//! that its cluster is alive. Times are the store's own.

use std::time::Duration;

use futures::TryStreamExt;
use jackline_storage::{ObjectMeta, ObjectStore, Result};
use jiff::Timestamp;
use tokio::time::Instant;

/// Where the notes are, each named as the UID of its cluster's kube-system namespace.
const DIRECTORY: &str = "metadata/jackline/";
/// How often a note is written again. Buckets may keep every version of it.
const REFRESH: Duration = Duration::from_secs(30 * 60);
/// The age up to which a note says that its cluster is alive.
const ALIVE: Duration = Duration::from_secs(2 * 3600);

/// Writes this cluster's note where it is due, and looks for those of others. `written`: when this process last wrote it.
///
/// # Errors
/// When the store does not answer.
pub(super) async fn others(
    store: &dyn ObjectStore,
    cluster: &str,
    may_write: bool,
    written: &mut Option<Instant>,
) -> Result<Vec<String>> {
    if may_write && written.is_none_or(|at| at.elapsed() >= REFRESH) {
        let note = serde_json::json!({"cluster": cluster}).to_string();
        store
            .put(&format!("{DIRECTORY}{cluster}"), note.into())
            .await?;
        *written = Some(Instant::now());
    }
    let notes: Vec<ObjectMeta> = store.list(DIRECTORY).try_collect().await?;
    let since = written.map_or(Duration::ZERO, |at| at.elapsed());
    Ok(alive(&notes, cluster, since, Timestamp::now()))
}

/// The other clusters with a young note. This cluster's own was written `since` ago, which tells the store's time.
fn alive(notes: &[ObjectMeta], cluster: &str, since: Duration, now: Timestamp) -> Vec<String> {
    let of = |note: &ObjectMeta| note.key.strip_prefix(DIRECTORY).map(str::to_owned);
    let own = notes
        .iter()
        .find(|note| of(note).as_deref() == Some(cluster));
    let now = own
        .and_then(|own| own.modified?.checked_add(since).ok())
        .unwrap_or(now);
    let young = |note: &&ObjectMeta| {
        note.modified
            .is_some_and(|time| now.duration_since(time).as_secs_f64() < ALIVE.as_secs_f64())
    };
    let mut others: Vec<String> = notes.iter().filter(young).filter_map(of).collect();
    others.retain(|other| other != cluster);
    others.sort();
    others
}

/// What a person has to know.
pub(super) fn message(others: &[String]) -> Option<String> {
    let what = match others {
        [] => return None,
        [one] => format!("cluster {one} uses this location too"),
        more => format!("clusters {} use this location too", more.join(", ")),
    };
    Some(format!(
        "{what}: give each cluster a prefix of its own. Backups of another cluster can be restored here; they are neither deleted nor \
         pruned by this one"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_notes_of_others_count_by_the_stores_clock() {
        let at = |seconds: i64| Timestamp::from_second(seconds).unwrap();
        let note = |name: &str, seconds: i64| ObjectMeta {
            key: format!("{DIRECTORY}{name}"),
            size: 1,
            modified: Some(at(seconds)),
        };
        let notes = [
            note("mine", 100_000),
            note("young", 95_000),
            note("old", 90_000),
            note("ahead", 100_500),
        ];
        let minute = Duration::from_secs(60);
        // This machine's clock is wrong by hours, which does not matter.
        assert_eq!(alive(&notes, "mine", minute, at(0)), ["ahead", "young"]);
        let later = Duration::from_secs(3600);
        assert_eq!(alive(&notes, "mine", later, at(0)), ["ahead"]);
        // Nothing may be written here, so only this machine knows the time.
        assert_eq!(
            alive(&notes[1..], "mine", Duration::ZERO, at(100_000)),
            ["ahead", "young"]
        );
        assert_eq!(message(&[]), None);
    }

    #[tokio::test]
    async fn a_note_is_written_once_in_a_while() {
        let store = jackline_storage::memory::MemoryStore::new();
        let mut written = None;
        let found = others(&store, "b", false, &mut written).await.unwrap();
        assert!(found.is_empty() && written.is_none());
        let found = others(&store, "a", true, &mut written).await.unwrap();
        assert!(found.is_empty() && written.is_some());
        let found = others(&store, "b", true, &mut None).await.unwrap();
        assert_eq!(found, ["a"]);
        let found = others(&store, "a", true, &mut written).await.unwrap();
        assert_eq!(found, ["b"]);
    }
}
