//! What one at a time may have: pods whose hooks run and claims that are read, of backups; claims that are filled, of restores.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Everything of one sort that is held in this process, by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(Arc<Inner>);

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
pub(crate) struct Held {
    holds: Holds,
    name: String,
}

impl Holds {
    /// Takes what has this name, unless somebody has it.
    pub(crate) fn try_hold(&self, name: &str) -> Option<Held> {
        self.0.held().insert(name.to_owned()).then(|| Held {
            holds: self.clone(),
            name: name.to_owned(),
        })
    }

    /// Whether somebody has it.
    pub(crate) fn is_held(&self, name: &str) -> bool {
        self.0.held().contains(name)
    }

    /// Waits until nobody has it, and takes it.
    pub(crate) async fn hold(&self, name: &str) -> Held {
        loop {
            let mut freed = pin!(self.0.freed.notified());
            freed.as_mut().enable();
            if let Some(held) = self.try_hold(name) {
                return held;
            }
            freed.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.0.held().remove(&self.name);
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
        assert!(holds.try_hold("a").is_none() && holds.is_held("a"));
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
        assert!(!holds.is_held("a"));
        assert!(holds.try_hold("a").is_some());
    }
}
