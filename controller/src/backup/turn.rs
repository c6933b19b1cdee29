//! Whose turn it is. As many backups run at once as the user has set, and what has begun goes on before anything begins: one that has to
//! try again, or that another leader had begun, does not wait for new ones, which may run for hours.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use jackline_crds::velero::Backup;
use jackline_runtime::{Key, Queue, Store};
use kube::ResourceExt;
use parking_lot::Mutex;

use super::{is_begun, is_deleted};

/// How many backups may run, and which do.
#[derive(Debug)]
pub(super) struct Turns {
    limit: usize,
    queue: Queue<Key>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeSet<Key>,
    /// Those that were told to wait, in that order.
    waiting: Vec<Key>,
}

/// A backup may run for as long as it has this.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    key: Key,
}

impl Turns {
    /// `queue` gets those that have waited.
    pub(super) fn new(limit: usize, queue: &Queue<Key>) -> Arc<Self> {
        Arc::new(Self {
            limit: limit.max(1),
            queue: queue.clone(),
            state: Mutex::default(),
        })
    }

    /// The turn of a backup, if it is that; else it is queued again when it may be. `begun`: what has begun and not ended, oldest first.
    pub(super) fn take(
        self: &Arc<Self>,
        key: &Key,
        begun: impl FnOnce() -> Vec<Key>,
    ) -> Option<Turn> {
        let mut state = self.state.lock();
        // Read when nobody can be woken between: what changes after it is read finds this one waiting.
        if !may_run(key, &state.running, &begun(), self.limit) {
            if !state.waiting.contains(key) {
                state.waiting.push(key.clone());
            }
            return None;
        }
        state.waiting.retain(|waiting| waiting != key);
        state.running.insert(key.clone());
        Some(Turn {
            turns: self.clone(),
            key: key.clone(),
        })
    }

    /// Those that wait look again.
    pub(super) fn wake(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        for key in waiting {
            self.queue.add(key);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.state.lock().running.remove(&self.key);
        self.turns.wake();
    }
}

/// Whether a backup may run beside those that do. All that has begun goes before what has not, whether it runs at the moment or not.
fn may_run(key: &Key, running: &BTreeSet<Key>, begun: &[Key], limit: usize) -> bool {
    let older = begun.iter().take_while(|begun| *begun != key);
    let before: HashSet<&Key> = running.iter().chain(older).collect();
    before.len() < limit
}

/// The backups that have begun and not ended, oldest first, but those that get nowhere.
pub(super) fn begun(backups: &Store<Backup>, stuck: impl Fn(&Backup) -> bool) -> Vec<Key> {
    let mut begun =
        backups.filter(|backup| is_begun(backup.phase()) && !is_deleted(backup) && !stuck(backup));
    let since = |backup: &Backup| {
        let status = backup.status.as_ref();
        let started = status.and_then(|status| status.start_timestamp.clone());
        started.map(|started| started.0)
    };
    begun.sort_by_cached_key(|backup| (since(backup), backup.name_any()));
    begun.iter().map(|backup| Key::of(&**backup)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jackline_crds::velero::BackupPhase;
    use serde_json::json;

    fn keys(names: &str) -> Vec<Key> {
        let names = names.split_whitespace();
        names.map(|name| Key::namespaced("velero", name)).collect()
    }

    #[test]
    fn what_has_begun_goes_on_before_anything_begins() {
        for (running, begun, asks, expected) in [
            ("", "", "new", true),
            ("a", "a", "new", true),
            ("a b", "a b", "new", false),
            // One that tries again in a moment has its place.
            ("a", "a b", "new", false),
            ("a", "a b", "b", true),
            // The watch does not know of `a` yet.
            ("a", "", "new", true),
            ("a b", "", "new", false),
            // After a restart with more than may run: the oldest first.
            ("", "a b c", "a", true),
            ("", "a b c", "b", true),
            ("", "a b c", "c", false),
            ("a b", "a b c", "c", false),
            ("a", "a c", "c", true),
        ] {
            let running = keys(running).into_iter().collect();
            let may = may_run(&keys(asks)[0], &running, &keys(begun), 2);
            assert_eq!(may, expected, "{running:?} {begun} {asks}");
        }
    }

    #[tokio::test]
    async fn who_waits_is_queued_when_a_turn_is_over() {
        let queue = Queue::new("test");
        let turns = Turns::new(1, &queue);
        let [a, b] = [&keys("a")[0], &keys("b")[0]];
        let first = turns.take(a, Vec::new);
        assert!(first.is_some());
        for _ in 0..2 {
            assert!(turns.take(b, Vec::new).is_none());
        }
        assert!(queue.is_empty());
        drop(first);
        assert_eq!(queue.len(), 1);
        // `a` has to try again.
        assert!(turns.take(b, || vec![a.clone()]).is_none());
        assert!(turns.take(a, || vec![a.clone()]).is_some());
        assert!(turns.take(b, Vec::new).is_some());
    }

    #[test]
    fn what_has_begun_is_in_the_order_in_which_it_did() {
        let backup = |name: &str, phase: BackupPhase, started: u32| -> Backup {
            serde_json::from_value(json!({
                "apiVersion": "velero.io/v1", "kind": "Backup",
                "metadata": {"namespace": "velero", "name": name},
                "spec": {},
                "status": {"phase": phase, "startTimestamp": format!("2026-11-22T14:00:{started:02}Z")},
            }))
            .unwrap()
        };
        let mut gone = backup("gone", BackupPhase::InProgress, 0);
        gone.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-11-22T14:00:00Z")).unwrap());
        let store = Store::fixed([
            gone,
            backup("b", BackupPhase::InProgress, 2),
            backup("c", BackupPhase::Finalizing, 2),
            backup("a", BackupPhase::InProgress, 3),
            backup("done", BackupPhase::Completed, 1),
            backup("new", BackupPhase::New, 1),
            backup("stuck", BackupPhase::InProgress, 1),
        ]);
        let stuck = |backup: &Backup| backup.name_any() == "stuck";
        assert_eq!(begun(&store, stuck), keys("b c a"));
    }
}
