//! Writes the two backup annotations on pods, by server-side apply without force: never a person's value, never a recreated pod, nothing
//! where nothing differs.

mod pace;

use std::sync::Arc;
use std::time::Duration;

use jackline_crds::names::{FIELD_MANAGER, annotation};
use jackline_policy::annotate::Desired;
use jackline_runtime::{Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, RunOptions};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use prometheus::{IntCounterVec, Opts};
use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::world::World;
use pace::Pace;

/// Writes at once: enough for the rate below where a write takes 80 ms.
const CONCURRENCY: usize = 32;
/// Writes per second, and how many may come at once after a pause.
const RATE: u32 = 400;

/// Starts the controller.
///
/// # Errors
/// When its metrics cannot be registered.
pub fn register(
    context: &Arc<Context>,
    world: &Arc<World>,
    kit: &Kit,
    lease: &Lease,
) -> Result<(), prometheus::Error> {
    let writes = jackline_runtime::metrics::add(
        context.metrics.registry(),
        IntCounterVec::new(
            Opts::new(
                "jackline_annotations_total",
                "Writes of backup annotations on pods.",
            ),
            &["action"],
        )?,
    )?;
    for action in ["set", "release"] {
        writes.with_label_values(&[action]);
    }
    let annotator = Arc::new(Annotator {
        context: context.clone(),
        world: world.clone(),
        writes,
        pace: Pace::new(RATE),
    });
    // No resync: a pod whose annotations differ is dirty until it is written, and the watch tells of everything else.
    let options = RunOptions::new()
        .concurrency(CONCURRENCY)
        .pass_deadline(Duration::from_secs(90))
        .resync(None);
    kit.run_leading(&world.pod_queue, options, lease, move |key, token| {
        let annotator = annotator.clone();
        async move { annotator.pass(&key, &token).await }
    });
    Ok(())
}

#[derive(Debug)]
struct Annotator {
    context: Arc<Context>,
    world: Arc<World>,
    writes: IntCounterVec,
    pace: Pace,
}

impl Annotator {
    async fn pass(&self, key: &Key, token: &LeaderToken) -> Result<Next, Failure> {
        self.world.ready().await;
        let Some(plan) = self.world.read(|state| state.pod_plan(key)) else {
            return Ok(Next::Done);
        };
        if !plan.conflicts.is_empty() {
            let note = format!(
                "{} is not ours and leaves out what a policy wants backed up: {}",
                annotation::BACKUP_VOLUMES,
                plan.conflicts.join(", ")
            );
            self.warn(key, &plan.uid, note);
        }
        let Some(desired) = plan.apply else {
            return Ok(Next::Done);
        };
        self.pace.wait().await;
        token.check()?;
        let api: Api<Pod> = Api::namespaced(self.context.clients.call.clone(), key.ns());
        let body = body(key, &plan.uid, &desired);
        match api
            .patch_metadata(
                &key.name,
                &PatchParams::apply(FIELD_MANAGER),
                &Patch::Apply(body),
            )
            .await
        {
            Ok(_) => {
                self.world.wrote(key, &plan.uid, &desired);
                let action = match desired == Desired::default() {
                    true => "release",
                    false => "set",
                };
                self.writes.with_label_values(&[action]).inc();
                Ok(Next::Done)
            }
            // Gone, replaced by another of the same name, or owned by somebody else meanwhile: the watch tells what it is now.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Next::Done),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                tracing::info!(pod = %key, reason = status.message, "an annotation is owned by somebody else");
                self.warn(
                    key,
                    &plan.uid,
                    format!("annotations were not applied: {}", status.message),
                );
                Ok(Next::After(Duration::from_secs(600)))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn warn(&self, key: &Key, uid: &str, note: String) {
        self.context.events.publish(Event {
            regarding: ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: key.namespace.clone(),
                name: Some(key.name.clone()),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            },
            related: None,
            kind: EventKind::Warning,
            reason: "AnnotationOwnedElsewhere",
            action: "Annotate",
            note,
        });
    }
}

/// What is applied: all that we hold afterwards. The UID keeps a pod that was replaced meanwhile from being touched, or one that has
/// gone from being made again.
fn body(key: &Key, uid: &str, desired: &Desired) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(key.name));
    metadata.insert("namespace".to_owned(), json!(key.ns()));
    metadata.insert("uid".to_owned(), json!(uid));
    let pairs = [
        (annotation::BACKUP_VOLUMES, &desired.backup_volumes),
        (
            annotation::BACKUP_VOLUMES_EXCLUDES,
            &desired.backup_volumes_excludes,
        ),
    ];
    let annotations: Map<String, Value> = pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), Value::Object(annotations));
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_applies_nothing_but_the_identity() {
        let key = Key::namespaced("n", "p");
        let set = Desired {
            backup_volumes: Some("a,b".to_owned()),
            backup_volumes_excludes: None,
        };
        let sent = body(&key, "u", &set);
        assert_eq!(
            sent["metadata"]["annotations"],
            json!({"backup.velero.io/backup-volumes": "a,b"})
        );
        assert_eq!(sent["metadata"]["uid"], "u");
        let released = body(&key, "u", &Desired::default());
        assert_eq!(
            released["metadata"],
            json!({"name": "p", "namespace": "n", "uid": "u"})
        );
    }
}
