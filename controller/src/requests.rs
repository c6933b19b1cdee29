//! What clients ask for (velero-compat §9.4, §9.5): a URL by which a file of a backup or a restore can be downloaded, and the server's
//! version. An answer is kept for a while, then the request goes.

use std::{sync::Arc, time::Duration};

use jackline_crds::{
    names::FIELD_MANAGER,
    velero::{
        BackupStorageLocation, DownloadPhase, DownloadRequest, DownloadRequestStatus,
        DownloadTarget, PluginInfo, Restore, ServerStatusPhase, ServerStatusRequest,
        ServerStatusRequestStatus,
    },
};
use jackline_runtime::{
    Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, Store,
    status::{Guard, StatusAt, StatusError, write_status},
};
use jackline_storage::layout::{BackupFile, RestoreFile, backup_object, restore_object};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::{context::Context, location, remove::remove};

/// How long a URL works.
const URL_LIFE: Duration = Duration::from_secs(600);
/// How long the answer about the server is kept.
const STATUS_LIFE: Duration = Duration::from_secs(60);

/// The release of Velero whose API and bucket layout these are, and our own.
const SERVER_VERSION: &str = concat!("v1.16.2+jackline.", env!("CARGO_PKG_VERSION"));

/// Starts both controllers.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) {
    let downloads = Queue::new("downloadrequests");
    let requests = context.stores.downloads.clone();
    requests.enqueue(&downloads, |change| vec![change.key.clone()]);
    let shared = context.clone();
    kit.run_leading(&downloads, RunOptions::new(), lease, move |key, token| {
        let (context, requests) = (shared.clone(), requests.clone());
        async move {
            context.alone().await?;
            download(&context, &requests, &key, &token).await
        }
    });

    let statuses = Queue::new("serverstatusrequests");
    let requests = context.stores.server_statuses.clone();
    requests.enqueue(&statuses, |change| vec![change.key.clone()]);
    let shared = context.clone();
    kit.run_leading(&statuses, RunOptions::new(), lease, move |key, token| {
        let (context, requests) = (shared.clone(), requests.clone());
        async move {
            context.alone().await?;
            server_status(&context, &requests, &key, &token).await
        }
    });
}

async fn download(
    context: &Context,
    requests: &Store<DownloadRequest>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    context.stores.ready().await;
    let Some(request) = requests.get(key) else {
        return Ok(Next::Done);
    };
    let api = context.api::<DownloadRequest>();
    let now = Timestamp::now();
    let answered = request.status.clone().unwrap_or_default();
    if let Some(Time(expires)) = answered.expiration {
        if expires > now {
            return Ok(Next::At(expires));
        }
        remove(&api, &request, token).await?;
        return Ok(Next::Done);
    }
    let expires = now + URL_LIFE;
    let mut status = DownloadRequestStatus {
        expiration: Some(Time(expires)),
        ..DownloadRequestStatus::default()
    };
    let found = match find(context, &request.spec.target).await? {
        Ok((location, object)) => url(context, &location, &object).await,
        Err(why) => Err(why),
    };
    match found {
        Ok(url) => {
            status.phase = Some(DownloadPhase::Processed);
            status.download_url = Some(url);
        }
        Err(why) => {
            status.phase = Some(DownloadPhase::Failed);
            status.message = Some(why);
        }
    }
    token.check()?;
    let written = write_status(
        &api,
        &*request,
        &status,
        StatusAt::Main,
        Guard::SameObject,
        FIELD_MANAGER,
    )
    .await;
    match written {
        // CRDs of Velero before 1.19 do not know the phase: its servers say nothing at all, and the client gives up by itself.
        Err(StatusError::Api {
            source: kube::Error::Api(answer),
            ..
        }) if answer.code == 422 && status.phase == Some(DownloadPhase::Failed) => {
            let why = status.message.unwrap_or_default();
            tracing::warn!(request = key.name, why, "nothing can be downloaded");
            let asked = request.creation_timestamp().map_or(now, |time| time.0);
            if asked + URL_LIFE <= now {
                remove(&api, &request, token).await?;
                return Ok(Next::Done);
            }
            Ok(Next::At(asked + URL_LIFE))
        }
        written => {
            written?;
            Ok(Next::At(expires))
        }
    }
}

/// The location of the file, and its name there; within, why there is none.
async fn find(
    context: &Context,
    target: &DownloadTarget,
) -> Result<Result<(BackupStorageLocation, String), String>, kube::Error> {
    let (kind, name) = (target.kind.as_str(), target.name.as_str());
    let (backup, object) = if let Ok(file) = kind.parse::<BackupFile>() {
        (name.to_owned(), backup_object(name, file))
    } else if let Ok(file) = kind.parse::<RestoreFile>() {
        let Some(restore) = context.fetch::<Restore>(name).await? else {
            return Ok(Err(format!("restore {name} not found")));
        };
        let Some(backup) = restore.spec.backup_name else {
            return Ok(Err(format!("restore {name} has not begun")));
        };
        (backup, restore_object(name, file))
    } else {
        return Ok(Err(format!("spec.target.kind {kind} is not known")));
    };
    let location = location::of_backup(context, &backup).await?;
    Ok(location.map(|location| (location, object)))
}

/// A URL of the file; an error says why there is none. Whether there is such a file is not looked at: the client is told by the bucket.
async fn url(
    context: &Context,
    location: &BackupStorageLocation,
    object: &str,
) -> Result<String, String> {
    location::usable(location, false)?;
    let client = &context.clients.call;
    let store = location::open(client, &context.namespace, location).await;
    let store = store.map_err(|error| location::chain(&error))?;
    let url = store.presign_get(object, URL_LIFE).await;
    url.map_err(|error| location::chain(&error))
}

async fn server_status(
    context: &Context,
    requests: &Store<ServerStatusRequest>,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    requests.ready().await;
    let Some(request) = requests.get(key) else {
        return Ok(Next::Done);
    };
    let api = context.api::<ServerStatusRequest>();
    let now = Timestamp::now();
    let answered = request.status.clone().unwrap_or_default();
    if let Some(Time(processed)) = answered.processed_timestamp {
        let until = processed + STATUS_LIFE;
        if until > now {
            return Ok(Next::At(until));
        }
        remove(&api, &request, token).await?;
        return Ok(Next::Done);
    }
    let status = ServerStatusRequestStatus {
        phase: Some(ServerStatusPhase::Processed),
        processed_timestamp: Some(Time(now)),
        server_version: Some(SERVER_VERSION.to_owned()),
        plugins: vec![PluginInfo {
            name: "velero.io/aws".to_owned(),
            kind: "ObjectStore".to_owned(),
        }],
    };
    token.check()?;
    write_status(
        &api,
        &*request,
        &status,
        StatusAt::Main,
        Guard::SameObject,
        FIELD_MANAGER,
    )
    .await?;
    Ok(Next::After(STATUS_LIFE))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::context::unwatched::{completed, context, location, path};

    #[tokio::test]
    async fn files_of_what_is_new_are_found() {
        let restore = json!({"metadata": {"name": "r"}, "spec": {"backupName": "b"}});
        let (r, b) = (path("restores", "r"), path("backups", "b"));
        let at = path("backupstoragelocations", "here");
        let objects = [
            (&*r, restore),
            (&b, completed("b", 1)),
            (&at, location("here")),
        ];
        let context = context(&objects);
        let found = async |kind: &str, name: &str| {
            let target = DownloadTarget {
                kind: serde_json::from_value(json!(kind)).unwrap(),
                name: name.to_owned(),
            };
            find(&context, &target)
                .await
                .unwrap()
                .map(|(_, object)| object)
        };
        let log = Ok("backups/b/b-logs.gz".to_owned());
        assert_eq!(found("BackupLog", "b").await, log);
        let log = Ok("restores/r/restore-r-logs.gz".to_owned());
        assert_eq!(found("RestoreLog", "r").await, log);
        for (kind, name, why) in [
            ("RestoreLog", "s", "restore s not found"),
            ("BackupLog", "c", "backup c not found"),
            ("Unknown", "b", "spec.target.kind Unknown is not known"),
        ] {
            assert_eq!(found(kind, name).await, Err(why.to_owned()));
        }
    }
}
