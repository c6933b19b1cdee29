//! The files of a restore in the bucket (velero-compat §3.3).

use std::{io::Write, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use jackline_storage::{
    ObjectStore,
    layout::{RestoreFile, restore_object},
};
use serde_json::Value;

use super::report::Report;
use crate::location::chain;

/// How long is waited between tries to write the files, in seconds: ten minutes in all.
const PAUSES: [u64; 9] = [1, 2, 4, 8, 15, 30, 60, 180, 300];

/// Writes the files of a restore as often as that may help. Within: why they could not be written, for a restore ends without them too.
///
/// # Errors
/// Of `may`, which is asked before each try.
pub async fn deliver<E>(
    store: &dyn ObjectStore,
    restore: &str,
    report: &Report,
    volumes: &[Value],
    may: impl Fn() -> Result<(), E>,
) -> Result<Result<(), String>, E> {
    let mut tries = 0;
    loop {
        may()?;
        let Err(error) = upload(store, restore, report, volumes).await else {
            return Ok(Ok(()));
        };
        let why = chain(&error);
        let Some(pause) = pause(tries, error.is_retryable()) else {
            return Ok(Err(format!("log and results are not in the bucket: {why}")));
        };
        tracing::warn!(
            restore,
            error = why,
            "the files of a restore are not written yet"
        );
        tokio::time::sleep(pause).await;
        tries += 1;
    }
}

/// How long to wait for another try, if one may help.
fn pause(tries: usize, may_help: bool) -> Option<Duration> {
    let seconds = PAUSES.get(tries).filter(|_| may_help)?;
    Some(Duration::from_secs(*seconds))
}

/// Writes the files of a restore, the log first.
///
/// # Errors
/// When the bucket does not take them.
pub async fn upload(
    store: &dyn ObjectStore,
    restore: &str,
    report: &Report,
    volumes: &[Value],
) -> Result<(), jackline_storage::Error> {
    let files = [
        (RestoreFile::Log, report.log_text()),
        (RestoreFile::Results, report.results().to_string()),
        (RestoreFile::ResourceList, json(&report.resource_list())),
        (RestoreFile::ItemOperations, "[]".to_owned()),
        (RestoreFile::VolumeInfo, json(&volumes)),
    ];
    for (file, text) in files {
        store
            .put(&restore_object(restore, file), gzip(text.as_bytes()))
            .await?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn gzip(content: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(content);
    encoder.finish().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use jackline_storage::memory::MemoryStore;

    use super::*;

    #[tokio::test]
    async fn what_the_bucket_never_takes_is_given_up_at_once() {
        let (store, report) = (MemoryStore::new(), Report::new("velero/r".to_owned()));
        let deliver = async |name: &str| {
            let may = || Ok::<_, Infallible>(());
            let Ok(delivered) = deliver(&store, name, &report, &[], may).await;
            delivered
        };
        assert_eq!(deliver("r").await, Ok(()));
        let why = deliver("..").await.unwrap_err();
        assert!(why.contains("not in the bucket"), "{why}");
        // Nor by who may not write any more.
        let may = || Err("not the leader");
        let refused = super::deliver(&store, "x", &report, &[], may).await;
        assert_eq!(refused, Err("not the leader"));
        assert!(
            store
                .list_level("restores/x")
                .await
                .unwrap()
                .objects
                .is_empty()
        );
    }

    #[test]
    fn a_bucket_that_is_away_is_waited_for_ten_minutes() {
        let waited: Duration = (0..).map_while(|tries| pause(tries, true)).sum();
        assert_eq!(waited, Duration::from_secs(600));
        assert_eq!(pause(0, false), None);
    }
}
