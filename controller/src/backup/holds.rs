//! What one backup at a time may have: pods whose hooks run, claims that are read.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Everything that is held by a backup of this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Holds(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<HashSet<String>>,
    freed: Notify,
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back what it holds when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    holds: Holds,
    uid: String,
}

impl Holds {
    /// Takes the object of this UID, unless somebody has it.
    pub(super) fn try_hold(&self, uid: &str) -> Option<Held> {
        self.0.held().insert(uid.to_owned()).then(|| Held {
            holds: self.clone(),
            uid: uid.to_owned(),
        })
    }

    /// Waits until nobody has the object of this UID, and takes it.
    pub(super) async fn hold(&self, uid: &str) -> Held {
        loop {
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if let Some(held) = self.try_hold(uid) {
                return held;
            }
            freed.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.0.held().remove(&self.uid);
        self.holds.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_it_and_the_others_wait() {
        let holds = Holds::default();
        let first = holds.hold("a").await;
        assert!(holds.try_hold("a").is_none());
        let other = holds.try_hold("b");
        assert!(other.is_some());
        let waiting = tokio::spawn({
            let holds = holds.clone();
            async move { holds.hold("a").await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        let second = waiting.await.unwrap();
        assert!(holds.try_hold("a").is_none());
        drop(second);
        assert!(holds.try_hold("a").is_some());
    }
}
