//! What the dashboards show of repositories: ready, size, last maintenance.
//!
//! The first and the last come from the objects. The size is that of the objects in the bucket, counted by the leader when a repository
//! gets ready, after each maintenance, and at most once an hour while volumes are being backed up into it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::TryStreamExt;
use jackline_crds::velero::{BackupRepository, RepositoryPhase};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions};
use jackline_storage::layout::restic_directory;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{GaugeVec, IntGaugeVec, Opts};
use tokio::time::Instant;

use crate::{context::Context, location};

/// How often a repository that changes is counted.
const EVERY: Duration = Duration::from_secs(3600);

/// The families.
#[derive(Debug, Clone)]
struct Families {
    ready: IntGaugeVec,
    size: IntGaugeVec,
    maintained: GaugeVec,
}

impl Families {
    fn show(&self, key: &Key, repository: Option<&BackupRepository>) {
        let labels = [key.name.as_str()];
        let Some(repository) = repository else {
            // An error means that it was never shown.
            let _ = self.ready.remove_label_values(&labels);
            let _ = self.size.remove_label_values(&labels);
            let _ = self.maintained.remove_label_values(&labels);
            return;
        };
        let ready = repository.phase() == RepositoryPhase::Ready;
        self.ready.with_label_values(&labels).set(i64::from(ready));
        if let Some(time) = last_maintenance(repository) {
            self.maintained
                .with_label_values(&labels)
                .set(time.as_millisecond() as f64 / 1000.0);
        }
    }
}

fn last_maintenance(repository: &BackupRepository) -> Option<Timestamp> {
    Some(
        repository
            .status
            .as_ref()?
            .last_maintenance_time
            .as_ref()?
            .0,
    )
}

/// When a repository was counted, and as of which maintenance.
type Counted = Mutex<BTreeMap<Key, (Option<Timestamp>, Instant)>>;

/// Registers the families and keeps them true.
///
/// # Errors
/// When a name is taken.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) -> Result<(), prometheus::Error> {
    let registry = context.metrics.registry();
    let gauge = |name: &str, help: &str| {
        IntGaugeVec::new(Opts::new(name, help), &["repository"])
            .and_then(|family| jackline_runtime::metrics::add(registry, family))
    };
    let maintained = Opts::new(
        "jackline_repository_last_maintenance_timestamp_seconds",
        "When a repository was last maintained.",
    );
    let families = Families {
        ready: gauge(
            "jackline_repository_ready",
            "1 while a repository can be used, else 0.",
        )?,
        size: gauge(
            "jackline_repository_size_bytes",
            "Bytes that a repository has in the bucket.",
        )?,
        maintained: jackline_runtime::metrics::add(
            registry,
            GaugeVec::new(maintained, &["repository"])?,
        )?,
    };
    let queue = Queue::new("repository-sizes");
    {
        let (families, queue) = (families.clone(), queue.clone());
        context.stores.repositories.on_change(move |change| {
            families.show(&change.key, change.after.as_deref());
            queue.add(change.key.clone());
        });
    }
    {
        let (repositories, queue) = (context.stores.repositories.clone(), queue.clone());
        context.stores.pod_volume_backups.on_change(move |change| {
            let ended = change
                .after
                .as_ref()
                .filter(|volume| volume.phase().is_terminal());
            let Some(volume) = ended else { return };
            let into = repositories.find(|repository| {
                repository.spec.backup_storage_location == volume.spec.backup_storage_location
                    && volume.spec.pod.namespace.as_deref()
                        == Some(&repository.spec.volume_namespace)
            });
            if let Some(repository) = into {
                queue.add(Key::of(&*repository));
            }
        });
    }
    let counted = Arc::new(Counted::default());
    let context = context.clone();
    let options = RunOptions::new()
        .concurrency(1)
        .pass_deadline(Duration::from_secs(600));
    kit.run_leading(&queue, options, lease, move |key, token| {
        let (context, families, counted) = (context.clone(), families.clone(), counted.clone());
        async move { pass(&context, &families, &counted, &key, &token).await }
    });
    Ok(())
}

async fn pass(
    context: &Context,
    families: &Families,
    counted: &Counted,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(repository) = context.stores.repositories.get(key) else {
        counted.lock().remove(key);
        return Ok(Next::Done);
    };
    let maintained = last_maintenance(&repository);
    let known = counted.lock().get(key).copied();
    if let Some((as_of, at)) = known
        && as_of == maintained
        && at.elapsed() < EVERY
    {
        return Ok(Next::OnChange);
    }
    let spec = &repository.spec;
    let location = context
        .stores
        .locations
        .get(&context.key(&spec.backup_storage_location));
    let usable = location.filter(|location| location::usable(location, false).is_ok());
    let (Some(location), RepositoryPhase::Ready) = (usable, repository.phase()) else {
        return Ok(Next::OnChange);
    };
    token.check()?;
    let store = location::open(&context.clients.call, &context.namespace, &location)
        .await
        .map_err(|error| Failure::transient("LocationClosed", error))?;
    let objects = store.list(&format!("{}/", restic_directory(&spec.volume_namespace)));
    let size = objects
        .try_fold(0_u64, |sum, object| async move {
            Ok(sum.saturating_add(object.size))
        })
        .await
        .map_err(|error| Failure::transient(error.reason(), error))?;
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    families.size.with_label_values(&[&key.name]).set(size);
    counted
        .lock()
        .insert(key.clone(), (maintained, Instant::now()));
    Ok(Next::OnChange)
}
