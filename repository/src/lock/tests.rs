//! The rules of a lock, each by the clock: time stands still but for what is slept.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use jackline_storage::ObjectStore;
use jackline_storage::memory::MemoryStore;

use super::guard::{EXPIRY, REFRESH, STORE_FOR, WRITE_DEADLINE};
use super::*;
use crate::crypto::Key;
use crate::faulty::{Fate, Faulty};
use crate::options::{KeyCost, Password, Version};
use crate::repository::Repository;

struct Place {
    store: Arc<Faulty>,
    memory: Arc<MemoryStore>,
    files: Files,
    options: OpenOptions,
    never: CancellationToken,
}

impl Place {
    fn new() -> Self {
        let memory = Arc::new(MemoryStore::new());
        let store = Faulty::new(memory.clone());
        let files = Files {
            store: store.clone(),
            key: Arc::new(Key::from_bytes(&[7; 64])),
            version: Version::V2,
        };
        Self {
            store,
            memory,
            files,
            options: OpenOptions::new(Password::new("x")),
            never: CancellationToken::new(),
        }
    }

    async fn take(&self, mode: Mode) -> Result<LockGuard> {
        acquire(&self.files, &self.options, mode, &self.never).await
    }

    async fn locks(&self) -> Vec<String> {
        use futures::TryStreamExt;
        let listed = self.memory.list("locks/");
        listed.map_ok(|meta| meta.key).try_collect().await.unwrap()
    }

    async fn index(&self, guard: &LockGuard) -> Result<(Id, u64)> {
        write(&self.files, guard, FileKind::Index, b"{}").await
    }

    /// From now on the requests that begin like this take so long, and no others.
    fn delay(&self, requests: &'static str, by: Duration) {
        self.store.on(move |request| {
            if request.starts_with(requests) {
                Fate::Delay(by)
            } else {
                Fate::Pass
            }
        });
    }

    /// Nothing is written any more.
    async fn assert_lost(&self, guard: &LockGuard) {
        self.store.asked("");
        let refused = self.index(guard).await;
        assert!(
            matches!(refused, Err(Error::LockLost { .. })),
            "{refused:?}"
        );
        assert!(self.store.asked("put index/").is_empty());
    }
}

async fn pass(seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_looked_for_written_waited_for_and_looked_for_again() {
    let place = Place::new();
    let begun = Instant::now();
    let guard = place.take(Mode::Exclusive).await.unwrap();
    assert!(begun.elapsed() >= SETTLE);
    let asked = place.store.asked("");
    let kinds: Vec<_> = asked.iter().map(|line| &line[..8]).collect();
    assert_eq!(kinds, ["list loc", "put lock", "list loc"]);
    // Others see it, and leave nothing of their own.
    for mode in [Mode::Shared, Mode::Exclusive] {
        assert!(matches!(place.take(mode).await, Err(Error::Locked { .. })));
    }
    assert_eq!(place.locks().await.len(), 1);
    guard.release(&place.never).await;
    assert!(place.locks().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_that_meet_neither_stays_when_they_conflict() {
    let place = Place::new();
    // Both look before either has written.
    place.store.on(|_| Fate::Delay(Duration::from_millis(10)));
    let (one, two) = tokio::join!(place.take(Mode::Exclusive), place.take(Mode::Shared));
    assert!(one.is_err() && two.is_err(), "{one:?} {two:?}");
    assert!(place.locks().await.is_empty());
    let (one, two) = tokio::join!(place.take(Mode::Shared), place.take(Mode::Shared));
    assert!(one.is_ok() && two.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_reads_at_once_writes_nothing_before_others_had_time_to_show_themselves() {
    let place = Place::new();
    place.store.on(|_| Fate::Delay(Duration::from_millis(10)));
    let begin = async |mode| {
        let mut patience = Patience::new(&place.options);
        begin(
            &place.files,
            &place.options,
            mode,
            &mut patience,
            &place.never,
        )
        .await
        .unwrap()
    };
    let begun = Instant::now();
    let (one, two) = tokio::join!(begin(Mode::Exclusive), begin(Mode::Shared));
    assert!(begun.elapsed() < SETTLE);
    for guard in [one, two] {
        let refused = place.index(&guard).await;
        assert!(matches!(refused, Err(Error::Locked { .. })), "{refused:?}");
        assert!(guard.lost().is_cancelled());
        guard.release(&place.never).await;
    }
    assert!(place.locks().await.is_empty());
    assert!(place.store.asked("put index").is_empty());

    let begun = Instant::now();
    let guard = begin(Mode::Shared).await;
    guard.rely_on(Vec::new());
    place.index(&guard).await.unwrap();
    assert!(begun.elapsed() >= SETTLE);
}

#[tokio::test(start_paused = true)]
async fn packs_wait_where_somebody_may_remove_them_unseen() {
    let place = Place::new();
    for (millis, waits) in [(10, false), (150, true)] {
        place.delay("put locks/", Duration::from_millis(millis));
        let mut attempts = Adding::new(&place.files, &place.options, &place.never);
        let guard = attempts.begin().await.unwrap();
        guard.rely_on(Vec::new());
        let begun = Instant::now();
        guard.shielded().await.unwrap();
        assert_eq!(begun.elapsed() >= SETTLE, waits, "{millis}");
        guard.settled().await.unwrap();
        guard.release(&place.never).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_has_to_be_there_after_the_second_look() {
    let place = Place::new();
    let held = place.take(Mode::Shared).await.unwrap();
    let (id, _) = place.index(&held).await.unwrap();
    let gone = vec![id, Id::of(b"gone")];
    for (millis, names, sound) in [
        // Others who looked before the lock was there have not ended yet: the second look sees their locks.
        (10, gone.clone(), true),
        (150, vec![id], true),
        (150, gone, false),
    ] {
        place.delay("put locks/", Duration::from_millis(millis));
        let mut attempts = Adding::new(&place.files, &place.options, &place.never);
        let guard = attempts.begin().await.unwrap();
        // However long reading takes.
        pass(1).await;
        guard.rely_on(names);
        let written = place.index(&guard).await;
        assert_eq!(written.is_ok(), sound, "{written:?}");
        let ended = attempts.end(guard, written).await;
        assert!(ended.is_some_and(|result| result.is_ok() == sound));
    }
    assert_eq!(place.locks().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_taken_away_while_it_was_refreshed_is_lost() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    let locks = place.locks().await;
    place.delay("put locks/", Duration::from_secs(5));
    pass(REFRESH.as_secs() + 2).await;
    // The look is over, the new file under way.
    place.memory.delete(&locks[0]).await.unwrap();
    assert!(guard.ensure().is_ok());
    pass(5).await;
    assert!(guard.lost().is_cancelled());
    place.assert_lost(&guard).await;
    guard.release(&place.never).await;
    assert!(place.locks().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn it_is_refreshed_every_minute_by_a_new_file_before_the_old_one_goes() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    let first = place.locks().await;
    place.store.asked("");
    pass(REFRESH.as_secs() + 1).await;
    let second = place.locks().await;
    assert!(second.len() == 1 && second != first);
    let asked = place.store.asked("");
    assert_eq!(
        asked,
        [
            format!("head {}", first[0]),
            format!("put {}", second[0]),
            format!("head {}", first[0]),
            format!("delete {}", first[0])
        ]
    );
    pass(10 * REFRESH.as_secs()).await;
    assert_eq!(place.locks().await.len(), 1);
    assert_eq!(place.store.asked("put locks/").len(), 10);
    guard.ensure().unwrap();
    guard.release(&place.never).await;
    assert!(place.locks().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_for_three_minutes_nothing_more_is_written() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.index(&guard).await.unwrap();
    place.store.on(|request| match request {
        request if request.starts_with("put locks/") => Fate::Fail,
        _ => Fate::Pass,
    });
    pass(EXPIRY.as_secs() - 5).await;
    // The file is there, and seen: until now that is enough.
    place.index(&guard).await.unwrap();
    pass(10).await;
    place.assert_lost(&guard).await;
    assert!(guard.ensure().is_err() && guard.lost().is_cancelled());
    // Better times do not bring it back.
    place.store.on(|_| Fate::Pass);
    pass(REFRESH.as_secs()).await;
    assert!(guard.ensure().is_err());
    guard.release(&place.never).await;
    assert!(place.locks().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_a_refresh_for_three_minutes_nothing_more_is_deleted() {
    let place = Place::new();
    let guard = place.take(Mode::Exclusive).await.unwrap();
    place.store.on(|request| match request {
        request if request.starts_with("put locks/") => Fate::Fail,
        request if request.starts_with("delete data/") => Fate::Delay(Duration::from_secs(50)),
        _ => Fate::Pass,
    });
    place.store.asked("");
    let ids: Vec<Id> = (0..64_u8).map(|n| Id::of(&[n])).collect();
    let begun = Instant::now();
    let deleted = delete_all(&place.files, &guard, FileKind::Pack, &ids).await;
    assert!(
        matches!(deleted, Err(Error::LockLost { .. })),
        "{deleted:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(300));
    let asked = place.store.asked("delete data/");
    assert!(asked.len() < 40, "{}", asked.len());
}

#[tokio::test(start_paused = true)]
async fn the_lock_stays_until_every_deletion_that_was_begun_has_ended() {
    for fails in [true, false] {
        let place = Place::new();
        let guard = place.take(Mode::Exclusive).await.unwrap();
        let ids: Vec<Id> = (0..20_u8).map(|n| Id::of(&[n])).collect();
        for id in &ids {
            let pack = Bytes::from_static(b"pack");
            let stored = store(&place.files, FileKind::Pack, id, pack).await;
            stored.unwrap();
        }
        let last = FileKind::Pack.path(&ids[7]);
        place.store.on(move |request| match request {
            request if fails && request.ends_with(&last) => Fate::Fail,
            request if request.starts_with("delete data/") => Fate::Late(Duration::from_secs(30)),
            _ => Fate::Pass,
        });
        place.store.asked("");
        let deleting = delete_all(&place.files, &guard, FileKind::Pack, &ids);
        // An error ends it, or somebody who waits no longer.
        let ended = tokio::time::timeout(Duration::from_secs(1), deleting).await;
        assert!(!matches!(ended, Ok(Ok(()))), "{ended:?}");
        guard.release(&place.never).await;
        assert!(place.locks().await.is_empty());
        let left = place.files.list(FileKind::Pack).await.unwrap().len();
        pass(60).await;
        let later = place.files.list(FileKind::Pack).await.unwrap().len();
        assert_eq!(left, later, "deleted after the lock was given back");
        assert_eq!(left, if fails { 13 } else { 12 });
        assert_eq!(place.store.asked("delete data/").len(), 8);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_look_at_the_own_lock_does_not_outlive_it() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.store.on(|request| match request {
        request if request.starts_with("put locks/") => Fate::Fail,
        _ => Fate::Pass,
    });
    pass(EXPIRY.as_secs() - 5).await;
    place.store.on(|request| match request {
        request if request.starts_with("put locks/") => Fate::Fail,
        request if request.starts_with("head locks/") => Fate::Delay(Duration::from_secs(50)),
        _ => Fate::Pass,
    });
    place.assert_lost(&guard).await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_written_within_a_minute_too() {
    let place = Place::new();
    let options = place.options.clone().with_key_cost(KeyCost::Generated);
    let made = Repository::init(place.store.clone(), &options).await;
    place.store.on(|request| match request {
        request if request.starts_with("put keys/") => Fate::Silence,
        _ => Fate::Pass,
    });
    let password = Password::new("y");
    let repository = made.unwrap();
    let adding = repository.add_key(&password);
    let added = tokio::time::timeout(2 * WRITE_DEADLINE, adding).await;
    assert!(
        matches!(
            added,
            Ok(Err(Error::Storage(jackline_storage::Error::Timeout { .. })))
        ),
        "{added:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_is_outlived() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.store.on(|_| Fate::Fail);
    pass(EXPIRY.as_secs() - 20).await;
    place.store.on(|_| Fate::Pass);
    pass(EXPIRY.as_secs()).await;
    guard.ensure().unwrap();
    assert_eq!(place.locks().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_own_lock_is_seen_again_before_each_index_and_snapshot() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.store.asked("");
    // The second look has just seen it.
    place.index(&guard).await.unwrap();
    assert_eq!(place.store.asked("").len(), 1);
    pass(1).await;
    for kind in [FileKind::Index, FileKind::Snapshot] {
        place.store.asked("");
        write(&place.files, &guard, kind, b"{}").await.unwrap();
        let asked = place.store.asked("");
        assert!(
            asked[0].starts_with("head locks/") && asked[1].starts_with("put "),
            "{asked:?}"
        );
    }
    let lock = place.locks().await;
    place.memory.delete(&lock[0]).await.unwrap();
    let refused = place.index(&guard).await;
    assert!(
        matches!(refused, Err(Error::LockLost { .. })),
        "{refused:?}"
    );
    assert!(place.store.asked("put ").is_empty());
    assert!(guard.lost().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn one_that_the_second_look_does_not_see_is_lost() {
    let place = Place::new();
    let mut attempts = Adding::new(&place.files, &place.options, &place.never);
    let guard = attempts.begin().await.unwrap();
    let lock = place.locks().await;
    place.memory.delete(&lock[0]).await.unwrap();
    place.assert_lost(&guard).await;
}

#[tokio::test(start_paused = true)]
async fn every_write_ends_within_a_minute() {
    let place = Place::new();
    place.store.on(|request| match request {
        request if request.starts_with("put ") => Fate::Silence,
        _ => Fate::Pass,
    });
    let begun = Instant::now();
    let pack = Bytes::from_static(b"pack");
    let stored = store(&place.files, FileKind::Pack, &Id::of(b"pack"), pack).await;
    assert!(stored.is_err() && begun.elapsed() <= WRITE_DEADLINE + SETTLE);
}

/// Writes of a kind, packs too, as an operation makes them.
async fn add(place: &Place, guard: &LockGuard, kind: FileKind) -> Result<()> {
    match kind {
        FileKind::Pack => {
            let pack = Bytes::from_static(b"pack");
            guard.store_pack(Id::of(b"pack"), pack).await
        }
        kind => write(&place.files, guard, kind, b"{}").await.map(drop),
    }
}

const ADDED: [FileKind; 3] = [FileKind::Pack, FileKind::Index, FileKind::Snapshot];

#[tokio::test(start_paused = true)]
async fn what_the_store_cannot_take_now_is_offered_again() {
    for away in ["put ", "head "] {
        let place = Place::new();
        let guard = place.take(Mode::Shared).await.unwrap();
        pass(1).await;
        let until = Instant::now() + Duration::from_secs(90);
        place.store.on(move |request| {
            let fails = Instant::now() < until && request.starts_with(away);
            if fails { Fate::Fail } else { Fate::Pass }
        });
        let added = ADDED.map(|kind| add(&place, &guard, kind));
        for added in futures::future::join_all(added).await {
            added.unwrap();
        }
        guard.release(&place.never).await;
        for kind in ADDED {
            assert_eq!(place.files.list(kind).await.unwrap().len(), 1, "{kind:?}");
        }
        // At growing intervals.
        let asked = place.store.asked(away);
        assert!(asked.len() < 50, "{}", asked.len());
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_offered_no_more_when_the_lock_is_lost() {
    for kind in ADDED {
        let place = Place::new();
        let guard = place.take(Mode::Shared).await.unwrap();
        place.store.on(|_| Fate::Fail);
        let begun = Instant::now();
        let added = add(&place, &guard, kind).await;
        assert!(matches!(added, Err(Error::LockLost { .. })), "{added:?}");
        assert!(begun.elapsed() <= EXPIRY + WRITE_DEADLINE);
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_offered_for_a_quarter_of_an_hour_where_the_lock_holds() {
    for kind in ADDED {
        let place = Place::new();
        let guard = place.take(Mode::Shared).await.unwrap();
        let puts = format!("put {}", kind.prefix());
        place.store.on(move |request| {
            let silent = request.starts_with(&puts);
            if silent { Fate::Silence } else { Fate::Pass }
        });
        let begun = Instant::now();
        let added = add(&place, &guard, kind).await;
        assert!(
            matches!(
                added,
                Err(Error::Storage(jackline_storage::Error::Timeout { .. }))
            ),
            "{added:?}"
        );
        assert!(begun.elapsed() <= STORE_FOR + WRITE_DEADLINE);
        place.store.on(|_| Fate::Pass);
        guard.release(&place.never).await;
        // It took effect after all: a snapshot that was reported as failed is taken back.
        let snapshots = place.files.list(FileKind::Snapshot).await.unwrap();
        assert_eq!(snapshots.len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_offered_no_more_when_nobody_waits_for_it() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.store.on(|request| match request {
        request if request.starts_with("put snapshots/") => Fate::Fail,
        _ => Fate::Pass,
    });
    let abandoned = add(&place, &guard, FileKind::Snapshot);
    let late = tokio::time::timeout(Duration::from_secs(100), abandoned).await;
    assert!(late.is_err());
    let begun = Instant::now();
    place.store.on(|_| Fate::Pass);
    guard.release(&place.never).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(place.locks().await.is_empty());
    assert_eq!(place.files.list(FileKind::Snapshot).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_lock_stays_until_what_others_rely_on_is_written() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.delay("put ", Duration::from_secs(30));
    let cancel = CancellationToken::new();
    for kind in [FileKind::Index, FileKind::Snapshot] {
        let abandoned = write(&place.files, &guard, kind, b"{}");
        let late = tokio::time::timeout(Duration::from_secs(1), abandoned).await;
        assert!(late.is_err());
    }
    cancel.cancel();
    let begun = Instant::now();
    guard.release(&cancel).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(place.locks().await.len(), 1);
    pass(31).await;
    assert!(place.locks().await.is_empty());
    // The index says nothing wrong. The snapshot was not to be.
    assert_eq!(place.files.list(FileKind::Index).await.unwrap().len(), 1);
    assert_eq!(place.files.list(FileKind::Snapshot).await.unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_leaves_no_lock() {
    for millis in [50, 150, 250, 350, 450] {
        let place = Place::new();
        place.store.on(|_| Fate::Delay(Duration::from_millis(100)));
        let cancel = CancellationToken::new();
        let taking = acquire(&place.files, &place.options, Mode::Shared, &cancel);
        let begun = Instant::now();
        let (taken, ()) = tokio::join!(taking, async {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            cancel.cancel();
        });
        assert!(matches!(taken, Err(Error::Cancelled)), "{taken:?}");
        assert!(begun.elapsed() < Duration::from_millis(millis + 50));
        pass(2).await;
        assert!(place.locks().await.is_empty(), "after {millis} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_given_back_while_it_is_refreshed_leaves_nothing() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.store.on(|_| Fate::Delay(Duration::from_millis(500)));
    // In the middle of each of the three requests.
    for late in [250, 750, 1250] {
        let other = place.take(Mode::Shared).await.unwrap();
        tokio::time::sleep(REFRESH + Duration::from_millis(late)).await;
        drop(other);
    }
    guard.release(&place.never).await;
    pass(5).await;
    assert!(place.locks().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_dead_are_healed_and_the_living_are_not() {
    let place = Place::new();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let mut dead = place.options.clone();
    dead.holder.pid = child.id();
    child.wait().unwrap();
    let left = acquire(&place.files, &dead, Mode::Exclusive, &place.never)
        .await
        .unwrap();
    let healing = place.take(Mode::Exclusive).await.unwrap();
    assert_eq!(place.locks().await.len(), 1);
    assert!(left.confirm().await.is_err(), "it finds out");
    healing.release(&place.never).await;

    let mut elsewhere = dead.clone();
    elsewhere.holder.hostname = "another host".into();
    let living = acquire(&place.files, &elsewhere, Mode::Exclusive, &place.never)
        .await
        .unwrap();
    assert!(matches!(
        place.take(Mode::Shared).await,
        Err(Error::Locked { .. })
    ));
    living.release(&place.never).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refreshed_while_others_look_is_seen() {
    let place = Place::new();
    let guard = place.take(Mode::Shared).await.unwrap();
    place.delay("get locks/", Duration::from_secs(10));
    pass(REFRESH.as_secs() - 5).await;
    // Listed under its old name, which is gone when it is read.
    let looked = living(&place.files, &place.options, None, &AtomicBool::default()).await;
    assert_eq!(looked.unwrap().others.len(), 1);
    guard.release(&place.never).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_dead_added_is_remembered_until_an_attempt_succeeds() {
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    for mode in [Mode::Shared, Mode::Exclusive] {
        let mut place = Place::new();
        let mut dead = place.options.clone();
        dead.holder.pid = child.id();
        let left = acquire(&place.files, &dead, mode, &place.never).await;
        let _left = left.unwrap();
        place.options.lock_wait = Duration::from_secs(60);
        // So slow that a prune may have come and gone.
        place.delay("put locks/", SETTLE);
        let mut attempts = Adding::new(&place.files, &place.options, &place.never);
        for _ in 0..2 {
            let guard = attempts.begin().await.unwrap();
            // An exclusive one was removing: what it left is garbage.
            assert_eq!(guard.healed(), mode == Mode::Shared);
            guard.rely_on(vec![Id::of(b"pruned meanwhile")]);
            let written = place.index(&guard).await;
            let refused = attempts.end(guard, written).await;
            assert!(refused.is_none(), "it begins anew");
        }
    }
}
