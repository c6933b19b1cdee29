//! Carries out a policy's retention: deletions through DeleteBackupRequests, the record of volumes that are gone, and how often their
//! repositories are pruned and checked. What may go is decided by `jackline_policy::retention`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jackline_crds::GoDuration;
use jackline_crds::names::{FIELD_MANAGER, annotation, label, label_value};
use jackline_crds::velero::{
    Backup, BackupPhase, BackupRepository, DeleteBackupRequest, PodVolumeBackup, Restore,
};
use jackline_policy::retention::{BackupFacts, Existence, Outcome, Plan, farewell, plan};
use jackline_policy::spec::{Mode, Retention};
use jackline_policy::{Policy, PolicyKind};
use jackline_runtime::{Failure, LeaderToken};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;

use crate::args::Engine;
use crate::context::Context;
use crate::deletion;
use crate::policies::{PolicyObject, policy_of};
use crate::world::points::Point;
use crate::world::{Upkeep, World};

/// Why a backup goes.
const UNKEPT: &str = "no rule of its policy keeps it";

/// What became of a policy's retention.
#[derive(Debug, Default)]
pub struct Kept {
    /// Why deletions wait for a person.
    pub held: Option<String>,
    /// When time alone changes the plan.
    pub next: Option<Timestamp>,
}

/// Looks at the backups of a policy and lets go what may go.
///
/// # Errors
/// When the API server does not take a request; nothing is lost, the next pass does the rest.
pub async fn apply<K: PolicyObject>(
    context: &Context,
    world: &World,
    api: &Api<K>,
    object: &K,
    policy: &Policy,
    token: &LeaderToken,
    now: Timestamp,
) -> Result<Kept, Failure> {
    if policy.spec.mode == Mode::Preview {
        return Ok(Kept::default());
    }
    // Beside a Velero its objects are its own: how often repositories are pruned is its setting, and since when a volume is gone is
    // recorded nowhere, so that the last points of such a volume stay.
    let own = context.args.engine == Engine::Builtin;
    if own {
        look_after(context, world, policy, token).await?;
    }
    let Some(retention) = &policy.spec.retention else {
        return Ok(Kept::default());
    };
    let watched = Seen::by_watches(context, policy);
    if watched.backups.is_empty() {
        return Ok(Kept::default());
    }
    let points: Vec<Point> = watched
        .backups
        .iter()
        .flat_map(|backup| world.points_of(&backup.name_any()))
        .collect();
    let exist = world.read(|state| state.lineages());
    let gone = |volume: &str| {
        let newest = points
            .iter()
            .filter(|point| point.lineage == volume)
            .max_by_key(|point| point.time);
        newest.and_then(|point| point.gone_since)
    };
    let existence = |volume: &str| match exist.contains(volume) {
        true => Existence::Exists,
        false => Existence::Gone(gone(volume)),
    };
    let zone = policy
        .spec
        .schedule
        .as_ref()
        .map_or(TimeZone::UTC, |schedule| schedule.zone.clone());
    let confirmed = confirmation(object).and_then(|text| text.parse().ok());
    let plan_by = |seen: &Seen| {
        let facts = seen.facts(context, world);
        plan(retention, &zone, &facts, existence, confirmed, now)
    };
    let plan = plan_by(&watched);
    if own {
        record_gone(context, retention, &points, &plan, &exist, token, now).await?;
    }
    // The watch brings whatever has changed.
    if !plan.delete.is_empty() && is_unchanged(api, object).await? {
        let now = Seen::now(context, policy).await?;
        let mut delete = plan_by(&now).delete;
        delete.retain(|name| plan.delete.contains(name));
        request(context, &now.backups, &delete, token).await?;
    }
    Ok(Kept {
        held: plan
            .held
            .as_ref()
            .map(|held| held_message(held.backups.len(), held.limit)),
        next: plan.next,
    })
}

/// Asks for the deletion of what goes with a policy. `false`: some of it is still at work or being read.
///
/// # Errors
/// As [`apply`].
pub async fn take_along(
    context: &Context,
    world: &World,
    policy: &Policy,
    token: &LeaderToken,
) -> Result<bool, Failure> {
    let exist = world.read(|state| state.lineages());
    let floor = policy.spec.retention.as_ref();
    let farewell_by = |seen: &Seen| {
        let floor = floor.map_or(Retention::MINIMUM_GOOD, |retention| retention.minimum_good);
        let facts = seen.facts(context, world);
        farewell(floor, &facts, |volume| exist.contains(volume))
    };
    let watched = farewell_by(&Seen::by_watches(context, policy));
    if watched.delete.is_empty() && !watched.later.is_empty() {
        return Ok(false);
    }
    let seen = Seen::now(context, policy).await?;
    let farewell = farewell_by(&seen);
    request(context, &seen.backups, &farewell.delete, token).await?;
    Ok(farewell.later.is_empty())
}

async fn request(
    context: &Context,
    backups: &[Arc<Backup>],
    names: &[String],
    token: &LeaderToken,
) -> Result<(), Failure> {
    for backup in backups {
        if names.contains(&backup.name_any()) {
            deletion::request(context, backup, UNKEPT, token).await?;
        }
    }
    Ok(())
}

/// Whether the policy still says what was read.
async fn is_unchanged<K: PolicyObject>(api: &Api<K>, object: &K) -> Result<bool, kube::Error> {
    let now = api.get_opt(&object.name_any()).await?;
    Ok(now.is_some_and(|now| {
        let (now_meta, meta) = (now.meta(), object.meta());
        now_meta.uid == meta.uid
            && now_meta.generation == meta.generation
            && now_meta.deletion_timestamp == meta.deletion_timestamp
            && confirmation(&now) == confirmation(object)
    }))
}

fn confirmation(policy: &impl ResourceExt) -> Option<&String> {
    policy.annotations().get(annotation::CONFIRM_DELETION)
}

/// A policy's backups, and all that is asked of backups.
struct Seen {
    backups: Vec<Arc<Backup>>,
    deletions: Vec<Arc<DeleteBackupRequest>>,
    restores: Vec<Arc<Restore>>,
}

impl Seen {
    fn by_watches(context: &Context, policy: &Policy) -> Self {
        let stores = &context.stores;
        Self {
            backups: stores.backups.filter(|backup| is_of(backup, policy)),
            deletions: stores.deletions.list(),
            restores: stores.restores.list(),
        }
    }

    /// As the API server has it: what is deleted rests on this. A watch may still count a backup that its user has just deleted.
    async fn now(context: &Context, policy: &Policy) -> Result<Self, kube::Error> {
        // Policies of one name may be in every namespace.
        let namespace = match policy.id.kind {
            PolicyKind::BackupPolicy => {
                format!("{}={}", label::POLICY_NAMESPACE, policy.id.namespace)
            }
            PolicyKind::ClusterBackupPolicy => format!("!{}", label::POLICY_NAMESPACE),
        };
        let name = label_value(&policy.id.name);
        let of_policy =
            ListParams::default().labels(&format!("{}={name},{namespace}", label::POLICY));
        let mut backups = shared(context.fetch_all::<Backup>(&of_policy).await?);
        backups.retain(|backup| is_of(backup, policy));
        let (mut deletions, mut restores) = (Vec::new(), Vec::new());
        if !backups.is_empty() {
            let all = ListParams::default();
            deletions = shared(context.fetch_all(&all).await?);
            restores = shared(context.fetch_all(&all).await?);
        }
        Ok(Self {
            backups,
            deletions,
            restores,
        })
    }

    fn facts(&self, context: &Context, world: &World) -> Vec<BackupFacts> {
        let facts = |backup: &Arc<Backup>| self.facts_of(context, world, backup);
        self.backups.iter().map(facts).collect()
    }

    fn facts_of(&self, context: &Context, world: &World, backup: &Backup) -> BackupFacts {
        let name = backup.name_any();
        let outcome = match backup.phase() {
            BackupPhase::Deleting => Outcome::Deleting,
            _ if deletion::is_requested(context, &self.deletions, backup) => Outcome::Deleting,
            BackupPhase::Completed | BackupPhase::PartiallyFailed => Outcome::Usable,
            BackupPhase::Failed | BackupPhase::FailedValidation => Outcome::Failed,
            _ => Outcome::Unfinished,
        };
        let reads = |restore: &Restore| {
            restore.spec.backup_name.as_deref() == Some(&*name) && !restore.phase().is_terminal()
        };
        let points = world.points_of(&name);
        let recorded = backup
            .annotations()
            .get(annotation::POD_VOLUME_BACKUPS)
            .and_then(|count| count.parse().ok());
        let started = backup
            .status
            .as_ref()
            .and_then(|status| status.start_timestamp.as_ref());
        let time = started.or(backup.metadata.creation_timestamp.as_ref());
        let cluster = backup
            .labels()
            .get(label::CLUSTER_UID)
            .or_else(|| backup.annotations().get(annotation::CLUSTER_UID));
        BackupFacts {
            time: time.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            outcome,
            ours: cluster == Some(&context.cluster_uid),
            in_use: self.restores.iter().any(|restore| reads(restore)),
            complete: recorded.is_none_or(|recorded: usize| points.len() >= recorded),
            // A snapshot of an empty volume can be restored, but displaces nothing.
            points: points
                .into_iter()
                .filter(|point| point.bytes > 0)
                .map(|point| point.lineage)
                .collect(),
            name,
        }
    }
}

fn is_of(backup: &Backup, policy: &Policy) -> bool {
    policy_of(backup).as_ref() == Some(&policy.id)
}

fn shared<K>(objects: Vec<K>) -> Vec<Arc<K>> {
    objects.into_iter().map(Arc::new).collect()
}

fn held_message(backups: usize, limit: usize) -> String {
    format!(
        "{backups} backups would be deleted at once, more than {limit}; to confirm, set the annotation {} to the present time \
         (RFC 3339, UTC)",
        annotation::CONFIRM_DELETION
    )
}

/// Notes on a volume's newest record since when it is gone, and takes the note back where it is there again.
async fn record_gone(
    context: &Context,
    retention: &Retention,
    points: &[Point],
    plan: &Plan,
    exist: &HashSet<String>,
    token: &LeaderToken,
    now: Timestamp,
) -> Result<(), Failure> {
    if retention.vanished_volumes.is_none() {
        return Ok(());
    }
    let newest = |volume: &str| {
        points
            .iter()
            .filter(|point| point.lineage == volume)
            .max_by_key(|point| point.time)
    };
    for volume in &plan.newly_gone {
        if let Some(point) = newest(volume) {
            note(context, &point.name, json!(now.to_string()), token).await?;
        }
    }
    for point in points
        .iter()
        .filter(|point| point.gone_since.is_some() && exist.contains(&point.lineage))
    {
        note(context, &point.name, serde_json::Value::Null, token).await?;
    }
    Ok(())
}

async fn note(
    context: &Context,
    name: &str,
    value: serde_json::Value,
    token: &LeaderToken,
) -> Result<(), Failure> {
    token.check()?;
    let patch = json!({"metadata": {"annotations": {(annotation::VOLUME_GONE_SINCE): value}}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match context
        .api::<PodVolumeBackup>()
        .patch_metadata(name, &params, &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes on the policy's repositories how often they are pruned and checked.
async fn look_after(
    context: &Context,
    world: &World,
    policy: &Policy,
    token: &LeaderToken,
) -> Result<(), Failure> {
    let asked = &policy.spec.repository;
    if asked.prune.is_none() && asked.check.is_none() {
        return Ok(());
    }
    let location = world.read(|state| state.location(policy));
    let repositories: Vec<Arc<BackupRepository>> = context
        .stores
        .repositories
        .filter(|repository| repository.spec.backup_storage_location == location);
    for repository in repositories {
        let namespace = &repository.spec.volume_namespace;
        let upkeep = world.read(|state| state.upkeep(namespace, &location));
        let Some(patch) = upkeep_patch(&repository, &upkeep) else {
            continue;
        };
        token.check()?;
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = repository.name_any();
        match context
            .api::<BackupRepository>()
            .patch(&name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What has to change on a repository. What no policy asks for stays as it is.
fn upkeep_patch(repository: &BackupRepository, upkeep: &Upkeep) -> Option<serde_json::Value> {
    let go =
        |every: Duration| GoDuration::from_secs(i64::try_from(every.as_secs()).unwrap_or(i64::MAX));
    let mut patch = json!({"metadata": {"uid": repository.uid()}});
    let mut differs = false;
    if let Some(every) = upkeep.prune.map(go)
        && repository.spec.maintenance_frequency != every
    {
        differs = true;
        patch["spec"] = json!({"maintenanceFrequency": every});
    }
    if let Some(every) = upkeep.check.map(go) {
        let percent = f64::from(upkeep.read_data) / 100.0;
        let wanted = [
            (annotation::CHECK_FREQUENCY, every.to_string()),
            (annotation::CHECK_READ_DATA, percent.to_string()),
        ];
        for (key, value) in wanted {
            if repository.annotations().get(key) != Some(&value) {
                differs = true;
                patch["metadata"]["annotations"][key] = json!(value);
            }
        }
    }
    differs.then_some(patch)
}

#[cfg(test)]
mod tests {
    use jackline_policy::PolicyId;
    use jackline_policy::spec::{PolicyParts, Template};

    use super::*;
    use crate::context::unwatched::{all, completed, list, with_kit};

    fn policy(id: PolicyId) -> Policy {
        let parts = PolicyParts {
            template: Template::new("t", json!({})).unwrap(),
            ..PolicyParts::default()
        };
        Policy {
            uid: "u".into(),
            created: Timestamp::UNIX_EPOCH,
            spec: parts.check(id.kind).unwrap(),
            id,
        }
    }

    #[tokio::test]
    async fn a_backup_that_somebody_has_just_asked_to_delete_counts_no_more() {
        let of = |name: &str, policy: &str| {
            let mut backup = completed(name, 1);
            backup["metadata"]["annotations"] = json!({(annotation::POLICY): policy});
            let (namespace, policy) = policy.split_once('/').unwrap_or(("", policy));
            let labels = &mut backup["metadata"]["labels"];
            labels[label::POLICY] = json!(policy);
            if !namespace.is_empty() {
                labels[label::POLICY_NAMESPACE] = json!(namespace);
            }
            backup
        };
        let backups = [
            of("a", "all"),
            of("b", "all"),
            of("c", "another"),
            of("d", "team/all"),
        ];
        let lists = [
            ("backups", backups.to_vec()),
            (
                "deletebackuprequests",
                vec![json!({"metadata": {"name": "r"}, "spec": {"backupName": "b"}})],
            ),
            (
                "restores",
                vec![json!({"metadata": {"name": "r"}, "spec": {"backupName": "a"}})],
            ),
        ];
        let lists = lists.map(|(plural, items)| (all(plural), list(&items)));
        let objects: Vec<_> = lists
            .iter()
            .map(|(at, list)| (&**at, list.clone()))
            .collect();
        let (context, kit) = with_kit(&objects);
        let world = World::start(&context, &kit);
        let policy = policy(PolicyId::cluster("all"));
        let seen = Seen::now(&context, &policy).await.unwrap();
        let facts = seen.facts(&context, &world);
        let found: Vec<_> = facts
            .iter()
            .map(|facts| (&*facts.name, facts.outcome, facts.in_use))
            .collect();
        assert_eq!(
            found,
            [
                ("a", Outcome::Usable, true),
                ("b", Outcome::Deleting, false)
            ]
        );
        assert!(Seen::by_watches(&context, &policy).backups.is_empty());
        let policy = self::policy(PolicyId::namespaced("team", "all"));
        let seen = Seen::now(&context, &policy).await.unwrap();
        assert_eq!(seen.backups.len(), 1);
        assert_eq!(seen.backups[0].name_any(), "d");
    }

    #[test]
    fn a_repository_is_written_only_where_it_differs() {
        let mut repository: BackupRepository = serde_json::from_value(json!({
            "metadata": {"name": "r", "uid": "u"},
            "spec": {"volumeNamespace": "n", "backupStorageLocation": "default", "maintenanceFrequency": "168h0m0s"},
        }))
        .unwrap();
        let hour = Duration::from_secs(3600);
        assert_eq!(upkeep_patch(&repository, &Upkeep::default()), None);
        let both = Upkeep {
            prune: Some(hour),
            check: Some(24 * hour),
            read_data: 250,
        };
        let said = upkeep_patch(&repository, &both);
        let annotations = json!({"jackline.dev/check-frequency": "24h0m0s", "jackline.dev/check-read-data": "2.5"});
        assert_eq!(
            said,
            Some(json!({
                "metadata": {"uid": "u", "annotations": annotations},
                "spec": {"maintenanceFrequency": "1h0m0s"},
            }))
        );
        repository.spec.maintenance_frequency = GoDuration::from_secs(3600);
        repository.metadata.annotations = serde_json::from_value(annotations).unwrap();
        assert_eq!(upkeep_patch(&repository, &both), None);
    }
}
