//! Asking for the deletion of a backup.

use std::sync::Arc;

use jackline_crds::{
    names::{FIELD_MANAGER, label, label_value},
    velero::{Backup, DeleteBackupRequest, DeleteBackupRequestSpec, DeletePhase},
};
use jackline_policy::{expiry::Asked, naming};
use jackline_runtime::{Failure, LeaderToken};
use jiff::Timestamp;
use kube::{
    ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::{args::Engine, context::Context, elsewhere, remove::remove};

/// Whether the deletion of a backup of this name has been asked for, as the watch has it.
pub fn asked(context: &Context, backup: &str) -> Asked {
    let of = |request: &DeleteBackupRequest| request.spec.backup_name == backup;
    asked_by(context, &context.stores.deletions.filter(of))
}

/// Whether these requests, which are for one backup, ask for its deletion.
fn asked_by(context: &Context, requests: &[Arc<DeleteBackupRequest>]) -> Asked {
    // A Velero that is in charge takes those that it has refused away itself.
    let ours = context.args.engine != Engine::Velero;
    if requests
        .iter()
        .any(|request| !(ours && is_refused(request)))
    {
        return Asked::Open;
    }
    let newest = requests.iter().map(|request| created(request)).max();
    newest.map_or(Asked::No, Asked::Refused)
}

/// Whether the deletion of a backup is about to be carried out, or was refused and is not worth asking for again yet: by all requests
/// that there are.
pub fn is_requested(
    context: &Context,
    requests: &[Arc<DeleteBackupRequest>],
    backup: &Backup,
) -> bool {
    let name = backup.name_any();
    let requests = requests.iter();
    let requests = requests.filter(|request| request.spec.backup_name == name);
    let requests: Vec<_> = requests.cloned().collect();
    let asked = asked_by(context, &requests);
    let kept = || elsewhere::keeps(context, backup);
    is_settled(asked, kept, Timestamp::now())
}

/// `kept`: it would be refused again.
fn is_settled(asked: Asked, kept: impl FnOnce() -> bool, now: Timestamp) -> bool {
    match asked {
        Asked::No => false,
        Asked::Open => true,
        Asked::Refused(_) => asked.rests(now).is_some() || kept(),
    }
}

/// A request that was carried out is gone.
fn is_refused(request: &DeleteBackupRequest) -> bool {
    request.phase() == DeletePhase::Processed
}

fn created(request: &DeleteBackupRequest) -> Timestamp {
    let created = request.metadata.creation_timestamp.as_ref();
    created.map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// The Backup that a request means, where that is not the present one of its name: a request that was made for an earlier backup, or
/// that came with a restore, is none for this.
pub fn other_backup(request: &DeleteBackupRequest, backup: &Backup) -> Option<String> {
    match request.labels().get(label::BACKUP_UID).map(String::as_str) {
        None | Some("") => {
            let older = request.creation_timestamp()? < backup.creation_timestamp()?;
            older.then(|| "an earlier backup of its name".to_owned())
        }
        meant if meant == backup.metadata.uid.as_deref() => None,
        Some(meant) => Some(format!(
            "a backup with UID {meant} (label {})",
            label::BACKUP_UID
        )),
    }
}

/// Asks for a deletion. The request's name is a function of the Backup, so asking twice asks once; one that was refused some time ago
/// gives way.
///
/// # Errors
/// When the API server does not take it.
pub async fn request(
    context: &Context,
    backup: &Backup,
    why: &str,
    token: &LeaderToken,
) -> Result<(), Failure> {
    let name = backup.name_any();
    let uid = backup.uid().unwrap_or_default();
    let labels = [
        (label::BACKUP_NAME.to_owned(), label_value(&name)),
        (label::BACKUP_UID.to_owned(), uid.clone()),
    ];
    let request = DeleteBackupRequest {
        metadata: ObjectMeta {
            name: Some(naming::delete_request_name(&name, &uid)),
            namespace: Some(context.namespace.clone()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        spec: DeleteBackupRequestSpec {
            backup_name: name.clone(),
        },
        status: None,
    };
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    token.check()?;
    let api = context.api::<DeleteBackupRequest>();
    let mut made = api.create(&params, &request).await;
    if is_there(&made)
        && let Some(old) = api.get_opt(&request.name_any()).await?
        && is_refused(&old)
        && Asked::Refused(created(&old))
            .rests(Timestamp::now())
            .is_none()
    {
        remove(&api, &old, token).await?;
        made = api.create(&params, &request).await;
    }
    match made {
        Ok(_) => {
            tracing::info!(backup = name, why, "deletion of the backup is requested");
            Ok(())
        }
        made if is_there(&made) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_there<T>(made: &Result<T, kube::Error>) -> bool {
    matches!(made, Err(kube::Error::Api(status)) if status.is_already_exists())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn what_would_be_refused_again_is_not_asked_for_again() {
        let now = Timestamp::from_second(10_000_000).unwrap();
        let before = |hours: i64| Asked::Refused(now - jiff::SignedDuration::from_hours(hours));
        for (asked, kept, settled) in [
            // That it is kept is to be said once.
            (Asked::No, true, false),
            (Asked::Open, false, true),
            (before(0), false, true),
            (before(2), false, false),
            (before(2), true, true),
        ] {
            assert_eq!(is_settled(asked, || kept, now), settled, "{asked:?} {kept}");
        }
    }

    #[test]
    fn a_request_with_the_uid_of_another_backup_is_none_for_this() {
        let mut backup = Backup::new("b", Default::default());
        backup.metadata.uid = Some("now".to_owned());
        let at = |second: i64| Some(Time(Timestamp::from_second(second).unwrap()));
        let mut request = DeleteBackupRequest::new("r", Default::default());
        backup.metadata.creation_timestamp = at(5);
        for (label, made, other) in [
            (None, 5, None),
            (None, 4, Some("an earlier backup of its name")),
            (Some(""), 6, None),
            (Some(""), 4, Some("an earlier backup of its name")),
            (Some("now"), 4, None),
            (
                Some("before"),
                6,
                Some("a backup with UID before (label velero.io/backup-uid)"),
            ),
        ] {
            let labels = label.map(|uid| (label::BACKUP_UID.to_owned(), uid.to_owned()));
            request.metadata.labels = Some(labels.into_iter().collect());
            request.metadata.creation_timestamp = at(made);
            let found = other_backup(&request, &backup);
            assert_eq!(found.as_deref(), other, "{label:?} {made}");
        }
    }
}
