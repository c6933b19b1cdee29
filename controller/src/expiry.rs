//! Backups whose time is over are deleted, each when it is: Velero looks once an hour. What may go is decided by
//! `jackline_policy::expiry`. A deletion that could not be carried out is asked for again an hour later, as by Velero.

use std::{sync::Arc, time::Duration};

use jackline_crds::{
    names::{FIELD_MANAGER, annotation, label},
    velero::{AccessMode, Backup, BackupPhase, LocationPhase, Restore},
};
use jackline_policy::expiry::{Facts, Location, Verdict, expiry};
use jackline_runtime::{Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions};
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};

use crate::{context::Context, deletion, elsewhere};

/// How soon it is looked again whether a restore has ended.
const SOON: Duration = Duration::from_secs(30);
/// How soon it is looked again at a location that takes no deletions, and at a deletion that failed.
const RETRY: Duration = Duration::from_secs(600);

/// Starts the controller.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) {
    let queue = Queue::new("expiry");
    let backups = &context.stores.backups;
    backups.enqueue(&queue, |change| vec![change.key.clone()]);
    {
        let namespace = context.namespace.clone();
        context.stores.deletions.enqueue(&queue, move |change| {
            let backup = change.either().map(|request| &request.spec.backup_name);
            let key = |backup: &String| Key::namespaced(&namespace, backup);
            backup.map(key).into_iter().collect()
        });
    }
    let context = context.clone();
    kit.run_leading(&queue, RunOptions::new(), lease, move |key, token| {
        let context = context.clone();
        async move {
            context.alone().await?;
            pass(&context, &key, &token).await
        }
    });
}

async fn pass(context: &Context, key: &Key, token: &LeaderToken) -> Result<Next, Failure> {
    context.stores.ready().await;
    let Some(backup) = context.stores.backups.get(key) else {
        return Ok(Next::Done);
    };
    let now = Timestamp::now();
    match expiry(facts(context, &backup, now), now) {
        Verdict::Keep => Ok(Next::OnChange),
        Verdict::At(time) => Ok(Next::At(time)),
        Verdict::Later => Ok(Next::After(SOON)),
        Verdict::Blocked(reason) => {
            mark(context, &backup, Some(reason), token).await?;
            Ok(Next::After(RETRY))
        }
        Verdict::Delete => {
            // The watch may not have told yet that it has gone with its request, or may stay longer.
            let Some(backup) = context.fetch::<Backup>(&key.name).await? else {
                return Ok(Next::OnChange);
            };
            if expiry(facts(context, &backup, now), now) != Verdict::Delete {
                return Ok(Next::After(SOON));
            }
            mark(context, &backup, None, token).await?;
            let why = match backup.phase() {
                BackupPhase::Deleting => "its deletion was not carried out",
                _ => "its time is over",
            };
            deletion::request(context, &backup, why, token).await?;
            Ok(Next::After(RETRY))
        }
    }
}

fn facts(context: &Context, backup: &Backup, now: Timestamp) -> Facts {
    let name = backup.name_any();
    let status = backup.status.as_ref();
    let cluster = backup
        .labels()
        .get(label::CLUSTER_UID)
        .or_else(|| backup.annotations().get(annotation::CLUSTER_UID));
    let reads = |restore: &Restore| {
        restore.spec.backup_name.as_deref() == Some(&*name) && !restore.phase().is_terminal()
    };
    let location = backup.spec.storage_location.clone().unwrap_or_default();
    let location = context.stores.locations.get(&context.key(location));
    let location = location.map_or(Location::Missing, |location| {
        let phase = location.status.as_ref().and_then(|status| status.phase);
        match (location.spec.access_mode, phase) {
            (Some(AccessMode::ReadOnly), _) => Location::ReadOnly,
            (_, Some(LocationPhase::Unavailable)) => Location::Unavailable,
            _ => Location::Writable,
        }
    });
    let expires = status.and_then(|status| Some(status.expiration.as_ref()?.0));
    let begun = backup.phase() == BackupPhase::Deleting;
    let is_over = begun || expires.is_some_and(|expires| expires <= now);
    Facts {
        expires,
        ended: backup.phase().is_terminal(),
        asked: deletion::asked(context, &name),
        begun,
        // All volumes are gone through: not for a backup that stays anyway.
        elsewhere: is_over && elsewhere::keeps(context, backup),
        foreign: cluster.is_some_and(|cluster| *cluster != context.cluster_uid),
        read: context.stores.restores.find(reads).is_some(),
        location,
    }
}

/// Says on the Backup why it cannot go, as Velero does.
async fn mark(
    context: &Context,
    backup: &Backup,
    reason: Option<&str>,
    token: &LeaderToken,
) -> Result<(), Failure> {
    let said = backup.labels().get(label::GC_FAILURE).map(String::as_str);
    if said == reason {
        return Ok(());
    }
    token.check()?;
    let patch = serde_json::json!({"metadata": {"uid": backup.uid(), "labels": {(label::GC_FAILURE): reason}}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = context.api::<Backup>();
    match api
        .patch_metadata(&backup.name_any(), &params, &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
