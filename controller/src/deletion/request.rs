//! Asking for the deletion of a backup.

use jackline_crds::{
    names::{FIELD_MANAGER, label, label_value},
    velero::{Backup, DeleteBackupRequest, DeleteBackupRequestSpec},
};
use jackline_policy::naming;
use jackline_runtime::{Failure, LeaderToken};
use kube::{
    ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::context::Context;

/// Whether the deletion of a backup of this name has been asked for.
pub fn is_requested(context: &Context, backup: &str) -> bool {
    let of = |request: &DeleteBackupRequest| request.spec.backup_name == backup;
    context.stores.deletions.find(of).is_some()
}

/// Asks for a deletion. The request's name is a function of the Backup, so asking twice asks once.
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
    match api.create(&params, &request).await {
        Ok(_) => {
            tracing::info!(backup = name, why, "deletion of the backup is requested");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
