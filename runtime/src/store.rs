//! The read side of a watch: the newest known state of every object of a kind, and news of its changes.

use std::{collections::HashMap, future::Future, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{Key, Queue};

/// One object changed.
#[derive(Debug)]
pub struct Change<K> {
    /// Which object.
    pub key: Key,
    /// What it was; `None` when it is new to us.
    pub before: Option<Arc<K>>,
    /// What it is; `None` when it is gone.
    pub after: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object as it is, or as it was last seen.
    pub fn either(&self) -> Option<&Arc<K>> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

type Hook<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct Entry<K> {
    object: Arc<K>,
    epoch: u64,
}

struct Shared<K> {
    objects: RwLock<HashMap<Key, Entry<K>>>,
    hooks: RwLock<Vec<Hook<K>>>,
    /// (synced, revision)
    state: watch::Sender<(bool, u64)>,
}

/// What a watch knows. Clones share it; reads never wait.
pub struct Store<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<K> std::fmt::Debug for Store<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("objects", &self.len())
            .finish_non_exhaustive()
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                objects: RwLock::default(),
                hooks: RwLock::default(),
                state: watch::Sender::new((false, 0)),
            }),
        }
    }
}

impl<K> Store<K> {
    /// The object of this name.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.shared
            .objects
            .read()
            .get(key)
            .map(|entry| entry.object.clone())
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared
            .objects
            .read()
            .values()
            .map(|entry| entry.object.clone())
            .collect()
    }

    /// The objects for which `keep` holds, in no order.
    pub fn filter(&self, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.shared.objects.read();
        objects
            .values()
            .filter(|entry| keep(&entry.object))
            .map(|e| e.object.clone())
            .collect()
    }

    /// Any object for which `matches` holds.
    pub fn find(&self, matches: impl Fn(&K) -> bool) -> Option<Arc<K>> {
        let objects = self.shared.objects.read();
        objects
            .values()
            .find(|entry| matches(&entry.object))
            .map(|e| e.object.clone())
    }

    /// The names of all objects.
    pub fn keys(&self) -> Vec<Key> {
        self.shared.objects.read().keys().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.shared.objects.read().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list is complete. Until then absence means nothing.
    pub fn is_ready(&self) -> bool {
        self.shared.state.borrow().0
    }

    /// Waits for the first list. Bound it with a deadline of your own: a kind that is not served never gets ready.
    pub async fn ready(&self) {
        let mut state = self.shared.state.subscribe();
        // An error means that the sender is gone, which `self` prevents.
        let _ = state.wait_for(|(synced, _)| *synced).await;
    }

    /// Waits until `look` finds something. It is asked again at each change of any object of the kind.
    pub async fn wait_for<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let mut state = self.shared.state.subscribe();
        loop {
            state.borrow_and_update();
            if let Some(found) = look(self) {
                return found;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A future that is over at the next change after this call.
    pub fn next_change(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut state = self.shared.state.subscribe();
        state.borrow_and_update();
        async move {
            let _ = state.changed().await;
        }
    }

    /// Calls `hook` for each change from now on, and at once for each object already known. It runs in the watch's task: it must be
    /// quick and must not wait.
    pub fn on_change(&self, hook: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut hooks = self.shared.hooks.write();
        let known: Vec<_> = {
            let objects = self.shared.objects.read();
            objects
                .iter()
                .map(|(key, e)| (key.clone(), e.object.clone()))
                .collect()
        };
        for (key, object) in known {
            hook(&Change {
                key,
                before: None,
                after: Some(object),
            });
        }
        hooks.push(Box::new(hook));
    }

    /// Puts the keys that `map` names for a change into a queue.
    pub fn enqueue<Q>(
        &self,
        queue: &Queue<Q>,
        map: impl Fn(&Change<K>) -> Vec<Q> + Send + Sync + 'static,
    ) where
        Q: crate::queue::QueueKey,
    {
        let queue = queue.clone();
        self.on_change(move |change| {
            for key in map(change) {
                queue.add(key);
            }
        });
    }

    pub(crate) fn apply(&self, key: Key, object: K, epoch: u64) {
        let after = Arc::new(object);
        let before = {
            let mut objects = self.shared.objects.write();
            objects.insert(
                key.clone(),
                Entry {
                    object: after.clone(),
                    epoch,
                },
            )
        };
        self.tell(&Change {
            key,
            before: before.map(|entry| entry.object),
            after: Some(after),
        });
    }

    /// Marks an object as still there without news about it.
    pub(crate) fn keep(&self, key: &Key, epoch: u64) {
        if let Some(entry) = self.shared.objects.write().get_mut(key) {
            entry.epoch = epoch;
        }
    }

    pub(crate) fn remove(&self, key: Key) {
        let before = self.shared.objects.write().remove(&key);
        if let Some(entry) = before {
            self.tell(&Change {
                key,
                before: Some(entry.object),
                after: None,
            });
        }
    }

    /// Removes what the list of this epoch did not name.
    pub(crate) fn sweep(&self, epoch: u64) {
        let gone: Vec<Key> = {
            let objects = self.shared.objects.read();
            objects
                .iter()
                .filter(|(_, e)| e.epoch != epoch)
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in gone {
            self.remove(key);
        }
        self.shared.state.send_modify(|(synced, revision)| {
            *synced = true;
            *revision += 1;
        });
    }

    fn tell(&self, change: &Change<K>) {
        for hook in self.shared.hooks.read().iter() {
            hook(change);
        }
        self.shared
            .state
            .send_modify(|(_, revision)| *revision += 1);
    }
}

impl<K: kube::Resource> Store<K> {
    /// A store that holds these objects and is ready: what was listed once, or what a test knows.
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let store = Self::default();
        for object in objects {
            store.apply(Key::of(&object), object, 1);
        }
        store.sweep(1);
        store
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aborted_relist_followed_by_a_complete_one_leaves_no_ghost() {
        let store = Store::<u32>::default();
        for name in ["a", "b"] {
            store.apply(Key::cluster(name), 1, 1);
        }
        store.sweep(1);
        // The second list names a, and breaks off; b is deleted meanwhile; the third names a only.
        store.apply(Key::cluster("a"), 2, 2);
        assert_eq!(store.len(), 2, "an incomplete list removes nothing");
        store.apply(Key::cluster("a"), 3, 3);
        store.sweep(3);
        assert_eq!(store.keys(), [Key::cluster("a")]);
    }

    #[test]
    fn a_hook_hears_of_what_is_known_and_of_every_change() {
        let store = Store::<u32>::default();
        store.apply(Key::cluster("a"), 1, 1);
        let heard = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = heard.clone();
        store.on_change(move |change| {
            log.lock().push((
                change.before.as_deref().copied(),
                change.after.as_deref().copied(),
            ));
        });
        store.apply(Key::cluster("a"), 2, 1);
        store.remove(Key::cluster("a"));
        store.remove(Key::cluster("a"));
        assert_eq!(
            *heard.lock(),
            [(None, Some(1)), (Some(1), Some(2)), (Some(2), None)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_the_object_comes() {
        let store = Store::<u32>::default();
        let waiter = store.clone();
        let task =
            tokio::spawn(async move { waiter.wait_for(|s| s.get(&Key::cluster("x"))).await });
        tokio::task::yield_now().await;
        store.apply(Key::cluster("other"), 1, 1);
        store.apply(Key::cluster("x"), 7, 1);
        assert_eq!(*task.await.unwrap(), 7);
    }
}
