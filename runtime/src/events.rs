//! Kubernetes Events (events.k8s.io/v1): on transitions only, never in the way.
//!
//! Not kube's `Recorder`: that one keeps sending the first note while the note changes. Here an event is written when its text is new
//! for that object and reason; publishing never blocks and never fails the work.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as EventObject},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::Metrics;

/// Longest note that the API takes is 1024 bytes.
const NOTE_BYTES: usize = 1000;
/// The same text about the same object is not repeated within this time.
const REPEAT: Duration = Duration::from_secs(3600);
const BUFFER: usize = 256;

/// What kind of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Things go as they should.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One piece of news.
#[derive(Debug, Clone)]
pub struct Event {
    /// The user's object.
    pub regarding: ObjectReference,
    /// What was acted on, if it is another object.
    pub related: Option<ObjectReference>,
    /// Normal or Warning.
    pub kind: EventKind,
    /// `CamelCase` word for machines.
    pub reason: &'static str,
    /// What was being done, `CamelCase`.
    pub action: &'static str,
    /// For people; cut at 1000 bytes.
    pub note: String,
}

/// (object, reason) → (hash of the note, when).
type Said = HashMap<(String, &'static str), (u64, Instant)>;

/// Publisher of the process. Clones share it.
#[derive(Debug, Clone)]
pub struct Events {
    sender: mpsc::Sender<Event>,
    metrics: Metrics,
    said: Arc<Mutex<Said>>,
}

impl Events {
    /// A publisher and the task that writes (for the supervisor). `controller` is the reporting controller
    /// (`jackline.dev/node-agent`), `instance` the pod or host.
    pub fn new(
        client: Client,
        controller: &str,
        instance: &str,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(BUFFER);
        let writer = Writer {
            client,
            controller: controller.to_owned(),
            instance: cut(instance, 128).to_owned(),
            metrics: metrics.clone(),
        };
        (
            Self {
                sender,
                metrics,
                said: Arc::default(),
            },
            writer.run(receiver, stop),
        )
    }

    /// Says it, unless just this was said about this object within the last hour.
    pub fn publish(&self, event: Event) {
        let mut hasher = DefaultHasher::new();
        event.note.hash(&mut hasher);
        let note = hasher.finish();
        let object = event.regarding.uid.clone().unwrap_or_else(|| {
            format!(
                "{}/{}",
                event.regarding.namespace.as_deref().unwrap_or_default(),
                event.regarding.name.as_deref().unwrap_or_default()
            )
        });
        {
            let mut said = self.said.lock();
            let now = Instant::now();
            if said.len() > 10_000 {
                said.retain(|_, (_, at)| now.duration_since(*at) < REPEAT);
            }
            let last = said.insert((object, event.reason), (note, now));
            if last.is_some_and(|(old, at)| old == note && now.duration_since(at) < REPEAT) {
                return;
            }
        }
        if self.sender.try_send(event).is_err() {
            self.metrics.families.events_lost.inc();
        }
    }

    /// Forgets what was said with this reason, so that the next time is news again (after a success).
    pub fn forget(&self, uid: &str, reason: &'static str) {
        self.said.lock().remove(&(uid.to_owned(), reason));
    }
}

struct Writer {
    client: Client,
    controller: String,
    instance: String,
    metrics: Metrics,
}

impl Writer {
    async fn run(self, mut receiver: mpsc::Receiver<Event>, stop: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                event = receiver.recv() => event,
                () = stop.cancelled() => return,
            };
            let Some(event) = event else {
                // All senders are gone: nothing more will come.
                stop.cancelled().await;
                return;
            };
            self.write(event).await;
        }
    }

    async fn write(&self, event: Event) {
        let object = self.object(event);
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let api = Api::<EventObject>::namespaced(self.client.clone(), &namespace);
        let params = PostParams::default();
        let create = api.create(&params, &object);
        match tokio::time::timeout(Duration::from_secs(10), create).await {
            Ok(Ok(_)) => self.metrics.families.events_published.inc(),
            Ok(Err(error)) => {
                tracing::debug!(%error, "event not written");
                self.metrics.families.events_lost.inc();
            }
            Err(_) => self.metrics.families.events_lost.inc(),
        }
    }

    fn object(&self, event: Event) -> EventObject {
        let namespace = event
            .regarding
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let name = event.regarding.name.as_deref().unwrap_or("cluster");
        // 253 bytes at most, unique, readable in a listing.
        let name = format!("{}.{}", cut(name, 200), uuid::Uuid::new_v4().simple());
        EventObject {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(event.action.to_owned()),
            reason: Some(event.reason.to_owned()),
            type_: Some(
                match event.kind {
                    EventKind::Normal => "Normal",
                    EventKind::Warning => "Warning",
                }
                .to_owned(),
            ),
            note: Some(cut(&event.note, NOTE_BYTES).to_owned()),
            regarding: Some(event.regarding),
            related: event.related,
            ..EventObject::default()
        }
    }
}

/// At most `bytes` bytes, cut between characters.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests;
