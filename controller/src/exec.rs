//! Commands in containers of pods: what hooks of backups and restores run.

use std::{
    fmt,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use jackline_crds::velero::HookStatus;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::context::Context;

/// How much of a command's output is kept for the log.
const OUTPUT: usize = 4096;

/// Counts hooks.
#[derive(Debug, Default)]
pub struct HookCount {
    attempted: AtomicI32,
    failed: AtomicI32,
}

impl HookCount {
    /// Counts hooks that were attempted, and how many of them failed.
    pub fn add(&self, attempted: i32, failed: i32) {
        self.attempted.fetch_add(attempted, Ordering::Relaxed);
        self.failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// The sum.
    pub fn status(&self) -> HookStatus {
        HookStatus {
            hooks_attempted: self.attempted.load(Ordering::Relaxed),
            hooks_failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// Why a command did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecError {
    /// It did not begin, or it ended with an error: which, with the beginning of what it wrote to standard error.
    Failed(String),
    /// It may have done its work, or still be at it.
    Unknown(String),
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(why) | Self::Unknown(why)) = self;
        f.write_str(why)
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it fails, or has not ended within `limit`.
pub async fn exec(
    context: &Context,
    target: (&str, &str),
    container: &str,
    command: &[String],
    limit: Duration,
) -> Result<(), ExecError> {
    let ended = tokio::time::timeout(limit, run(context, target, container, command)).await;
    ended.unwrap_or_else(|_| Err(ExecError::Unknown(format!("timed out after {limit:?}"))))
}

async fn run(
    context: &Context,
    (namespace, pod): (&str, &str),
    container: &str,
    command: &[String],
) -> Result<(), ExecError> {
    // The client for streams: a command may be silent for longer than a request may take.
    let api: Api<Pod> = Api::namespaced(context.clients.watch.clone(), namespace);
    let params = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let process = api.exec(pod, command, &params).await;
    let mut process = process.map_err(|error| ExecError::Failed(error.to_string()))?;
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (_, errors) = tokio::join!(drain(stdout), drain(stderr));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
        Some(status) => {
            let message = status.message.unwrap_or_default();
            Err(ExecError::Failed(
                format!("{message} {errors}").trim().to_owned(),
            ))
        }
        None => Err(ExecError::Unknown(
            "the connection broke before the command ended".to_owned(),
        )),
    }
}

/// Reads to the end and keeps the beginning.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut buffer = vec![0; OUTPUT];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let room = OUTPUT.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}
