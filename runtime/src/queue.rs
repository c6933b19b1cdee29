//! A keyed queue: each key is in it at most once, waits until its time, and is handed to one worker at a time.
//!
//! Order among due keys is by due time, so nothing starves. Memory is bounded by the number of distinct keys.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// What can be a key.
pub trait QueueKey: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Debug + 'static {}
impl<K: Clone + Eq + Hash + Ord + Send + Sync + std::fmt::Debug + 'static> QueueKey for K {}

/// No key is held longer than this without a pass: far timers are asked for again.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Wall-clock timers are looked at again after this, so that a clock that jumps is noticed.
const WALL_STEP: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
struct Wait {
    due: Instant,
    /// Not before this wall-clock time.
    wall: Option<Timestamp>,
}

#[derive(Debug)]
struct State<K> {
    waiting: HashMap<K, Wait>,
    by_time: BTreeSet<(Instant, K)>,
    /// Keys with a worker; what was asked for meanwhile waits in `waiting`.
    active: HashSet<K>,
    attempts: HashMap<K, u32>,
}

/// A delaying, deduplicating queue. Clones share it.
#[derive(Debug)]
pub struct Queue<K> {
    name: &'static str,
    state: Arc<Mutex<State<K>>>,
    news: Arc<Notify>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            state: self.state.clone(),
            news: self.news.clone(),
        }
    }
}

impl<K: QueueKey> Queue<K> {
    /// An empty queue; the name is for metrics and logs.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            state: Arc::new(Mutex::new(State {
                waiting: HashMap::new(),
                by_time: BTreeSet::new(),
                active: HashSet::new(),
                attempts: HashMap::new(),
            })),
            news: Arc::default(),
        }
    }

    /// Name given at creation.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the key as soon as a worker is free; again afterwards if one is at it now.
    pub fn add(&self, key: K) {
        self.put(
            key,
            Wait {
                due: Instant::now(),
                wall: None,
            },
        );
    }

    /// Runs the key after a time, or earlier if it is asked for earlier.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.put(
            key,
            Wait {
                due: Instant::now() + delay.min(MAX_DELAY),
                wall: None,
            },
        );
    }

    /// Runs the key at a wall-clock time, or earlier if it is asked for earlier.
    pub fn add_at(&self, key: K, at: Timestamp) {
        self.put(key, wall_wait(at));
    }

    /// Takes the key out. A running pass goes on, its wish for a next one is kept.
    pub fn remove(&self, key: &K) {
        let mut state = self.state.lock();
        state.unschedule(key);
        state.attempts.remove(key);
    }

    /// Keys that wait, due or not.
    pub fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// (due keys, age of the oldest due key)
    pub fn backlog(&self) -> (usize, Duration) {
        let now = Instant::now();
        let state = self.state.lock();
        let mut due = state.by_time.iter().take_while(|(at, _)| *at <= now);
        let oldest = due.next().map(|(at, _)| now - *at);
        (
            oldest.map_or(0, |_| 1 + due.count()),
            oldest.unwrap_or_default(),
        )
    }

    fn put(&self, key: K, wait: Wait) {
        let mut state = self.state.lock();
        if state
            .waiting
            .get(&key)
            .is_some_and(|old| old.due <= wait.due)
        {
            return;
        }
        state.unschedule(&key);
        state.by_time.insert((wait.due, key.clone()));
        state.waiting.insert(key, wait);
        drop(state);
        self.news.notify_one();
    }

    /// The next due key whose previous pass is over. It is the caller's until [`Queue::done`].
    pub(crate) async fn take(&self) -> K {
        loop {
            let news = self.news.notified();
            let wake = match self.try_take() {
                Ok(key) => return key,
                Err(wake) => wake,
            };
            match wake {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, news).await;
                }
                None => news.await,
            }
        }
    }

    /// A due key, or when to look again.
    fn try_take(&self) -> Result<K, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let mut postponed = Vec::new();
        let mut found = None;
        let mut wake = None;
        for (at, key) in &state.by_time {
            if *at > now {
                wake = Some(*at);
                break;
            }
            if state.active.contains(key) {
                continue;
            }
            let wall = state.waiting.get(key).and_then(|wait| wait.wall);
            match wall.filter(|wall| *wall > Timestamp::now()) {
                Some(wall) => postponed.push((key.clone(), wall)),
                None => {
                    found = Some(key.clone());
                    break;
                }
            }
        }
        for (key, wall) in postponed {
            let wait = wall_wait(wall);
            state.unschedule(&key);
            state.by_time.insert((wait.due, key.clone()));
            state.waiting.insert(key, wait);
            wake = Some(wake.map_or(wait.due, |at: Instant| at.min(wait.due)));
        }
        let Some(key) = found else { return Err(wake) };
        state.unschedule(&key);
        state.active.insert(key.clone());
        Ok(key)
    }

    /// The pass over `key` is over.
    pub(crate) fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.active.remove(key);
        drop(state);
        self.news.notify_one();
    }

    /// How often the key has failed in a row, this time included.
    pub(crate) fn failed(&self, key: &K) -> u32 {
        let mut state = self.state.lock();
        let attempts = state.attempts.entry(key.clone()).or_default();
        *attempts = attempts.saturating_add(1);
        *attempts
    }

    pub(crate) fn succeeded(&self, key: &K) {
        self.state.lock().attempts.remove(key);
    }
}

fn wall_wait(at: Timestamp) -> Wait {
    let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    Wait {
        due: Instant::now() + left.min(WALL_STEP),
        wall: Some(at),
    }
}

impl<K: QueueKey> State<K> {
    fn unschedule(&mut self, key: &K) {
        if let Some(wait) = self.waiting.remove(key) {
            self.by_time.remove(&(wait.due, key.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_in_once_and_keeps_its_earliest_time() {
        let queue = Queue::new("test");
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!(queue.len(), 1);
        let start = Instant::now();
        assert_eq!(queue.take().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_worked_on_waits_and_others_pass_it() {
        let queue = Queue::new("test");
        queue.add("a");
        assert_eq!(queue.take().await, "a");
        queue.add("a");
        tokio::time::advance(Duration::from_secs(1)).await;
        queue.add("b");
        assert_eq!(queue.take().await, "b");
        let second = tokio::time::timeout(Duration::from_secs(1), queue.take()).await;
        assert!(second.is_err(), "a is still worked on");
        queue.done(&"a");
        assert_eq!(queue.take().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn far_timers_are_clamped() {
        let queue = Queue::new("test");
        queue.add_after("years", Duration::from_secs(100 * 365 * 24 * 3600));
        let start = Instant::now();
        queue.take().await;
        assert_eq!(start.elapsed(), MAX_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_timer_is_not_early() {
        // The paused clock runs ahead of the wall clock: the key is looked at each minute and put back.
        let queue = Queue::new("test");
        queue.add_at(
            "tick",
            Timestamp::now() + jiff::SignedDuration::from_secs(3600),
        );
        let early = tokio::time::timeout(Duration::from_secs(7200), queue.take()).await;
        assert!(early.is_err());
        queue.add("tick");
        assert_eq!(queue.take().await, "tick");
    }

    #[tokio::test(start_paused = true)]
    async fn backlog_counts_what_is_due() {
        let queue = Queue::new("test");
        queue.add("a");
        queue.add_after("later", Duration::from_secs(100));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(queue.backlog(), (1, Duration::from_secs(7)));
    }
}
