//! Where the events of a watch go: into a store, or to a hook.

use kube::Resource;

use crate::{Key, Store};

/// What a raw watch tells. A list is `Init`, `InitApply`…, `InitDone`; one that broke off starts with `Init` again, so holders of
/// derived state mark with an epoch per `Init` and sweep at `InitDone`.
#[derive(Debug)]
pub enum WatchEvent<K> {
    /// A list begins.
    Init,
    /// An object of the list.
    InitApply(K),
    /// The list is complete: what it did not name is gone.
    InitDone,
    /// An object came or changed.
    Apply(K),
    /// An object went; its last state.
    Delete(K),
}

/// Where the events of a watch go.
pub(super) trait Sink<K>: Send {
    fn event(&mut self, event: WatchEvent<K>);
    /// An object is there but cannot be read.
    fn invalid(&mut self, key: &Key);
    fn objects(&self) -> Option<usize>;
}

/// Which objects a store holds.
pub(crate) type Keep<K> = Box<dyn Fn(&K) -> bool + Send>;

pub(super) struct IntoStore<K> {
    pub store: Store<K>,
    pub epoch: u64,
    pub keep: Keep<K>,
}

impl<K: Resource + Send + Sync> Sink<K> for IntoStore<K> {
    fn event(&mut self, event: WatchEvent<K>) {
        match event {
            WatchEvent::Init => self.epoch += 1,
            WatchEvent::InitApply(object) => {
                let key = Key::of(&object);
                // A list repeats what we know; only news is told.
                let known = self.store.get(&key);
                let same = known.is_some_and(|k| {
                    k.meta().resource_version == object.meta().resource_version
                        && k.meta().uid == object.meta().uid
                });
                if same {
                    self.store.keep(&key, self.epoch);
                } else if (self.keep)(&object) {
                    self.store.apply(key, object, self.epoch);
                }
            }
            WatchEvent::InitDone => self.store.sweep(self.epoch),
            WatchEvent::Apply(object) if (self.keep)(&object) => {
                self.store.apply(Key::of(&object), object, self.epoch);
            }
            WatchEvent::Apply(object) | WatchEvent::Delete(object) => {
                self.store.remove(Key::of(&object))
            }
        }
    }

    fn invalid(&mut self, key: &Key) {
        // The last readable state is older than what the user wrote: acting on it would be wrong.
        self.store.remove(key.clone());
    }

    fn objects(&self) -> Option<usize> {
        Some(self.store.len())
    }
}

pub(super) struct IntoHook<F>(pub F);

impl<K, F: FnMut(WatchEvent<K>) + Send> Sink<K> for IntoHook<F> {
    fn event(&mut self, event: WatchEvent<K>) {
        (self.0)(event);
    }
    fn invalid(&mut self, _: &Key) {}
    fn objects(&self) -> Option<usize> {
        None
    }
}
