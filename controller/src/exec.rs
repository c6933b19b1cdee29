//! Commands in containers of pods: what hooks of backups and restores run.

use std::{
    fmt,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use jackline_crds::velero::HookStatus;
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Status};
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::context::Context;

/// Why a command failed that has begun.
const EXIT_CODE: &str = "NonZeroExitCode";
/// How much of each of a command's outputs is kept for the log.
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
    /// It did not begin.
    NotBegun(String),
    /// It ended with an error: which, with the beginning of what it wrote. It may have done some of its work.
    Failed(String),
    /// It may have done its work, or still be at it.
    Unknown(String),
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotBegun(why) | Self::Failed(why) | Self::Unknown(why)) = self;
        f.write_str(why)
    }
}

/// The beginning of what a command wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    stdout: String,
    stderr: String,
}

impl Output {
    /// A line for the log for each output that is not empty, in Velero's words.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let both = [("stdout", &self.stdout), ("stderr", &self.stderr)];
        both.into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| format!("{name}: {text}"))
    }
}

/// Runs a command to its end; gives what it wrote.
///
/// # Errors
/// When it fails, or has not ended within `limit`.
pub async fn exec(
    context: &Context,
    target: (&str, &str),
    container: &str,
    command: &[String],
    limit: Duration,
) -> Result<Output, ExecError> {
    let ended = tokio::time::timeout(limit, run(context, target, container, command)).await;
    ended.unwrap_or_else(|_| Err(ExecError::Unknown(format!("timed out after {limit:?}"))))
}

async fn run(
    context: &Context,
    (namespace, pod): (&str, &str),
    container: &str,
    command: &[String],
) -> Result<Output, ExecError> {
    // The client for streams: a command may be silent for longer than a request may take.
    let api: Api<Pod> = Api::namespaced(context.clients.watch.clone(), namespace);
    let params = AttachParams::default()
        .container(container)
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let process = api.exec(pod, command, &params).await;
    let mut process = process.map_err(|error| ExecError::NotBegun(error.to_string()))?;
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (stdout, stderr) = tokio::join!(drain(stdout), drain(stderr));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    ended(status, Output { stdout, stderr })
}

/// How a command ended, of which the API server said `status` at last.
fn ended(status: Option<Status>, output: Output) -> Result<Output, ExecError> {
    let Some(status) = status else {
        let why = "the connection broke before the command ended";
        return Err(ExecError::Unknown(why.to_owned()));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(output);
    }
    let Output { stdout, stderr } = output;
    let message = status.message.unwrap_or_default();
    // Some say on the one what others say on the other.
    let said = if stderr.is_empty() { stdout } else { stderr };
    let why = format!("{message} {said}").trim().to_owned();
    Err(match status.reason.as_deref() {
        Some(EXIT_CODE) => ExecError::Failed(why),
        _ if never_began(&why) => ExecError::NotBegun(why),
        // It may have broken off in the middle.
        _ => ExecError::Unknown(why),
    })
}

/// Whether the words of kubelet and runtime say that there was nothing to run; the status has no code for it.
fn never_began(why: &str) -> bool {
    let missing = [
        "executable file not found",
        "no such file or directory",
        "container not found",
        "permission denied",
    ];
    missing.iter().any(|words| why.contains(words))
}

/// Reads to the end and keeps the beginning.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let (mut kept, mut whole) = (Vec::new(), true);
    let mut buffer = vec![0; OUTPUT];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let room = OUTPUT.saturating_sub(kept.len()).min(read);
        whole &= room == read;
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&kept);
    if whole {
        text.trim().to_owned()
    } else {
        // A character may be cut in two.
        let text = text.trim().trim_end_matches(char::REPLACEMENT_CHARACTER);
        format!("{text} … (cut after {OUTPUT} bytes)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_beginning_of_an_output_is_kept() {
        assert_eq!(drain(Some(&b" frozen\n"[..])).await, "frozen");
        assert_eq!(drain(None::<&[u8]>).await, "");
        let exact = "x".repeat(OUTPUT);
        assert_eq!(drain(Some(exact.as_bytes())).await, exact);
        let long = format!("{}äb", "x".repeat(OUTPUT - 1));
        let cut = format!("{} … (cut after 4096 bytes)", "x".repeat(OUTPUT - 1));
        assert_eq!(drain(Some(long.as_bytes())).await, cut);
    }

    #[test]
    fn a_command_that_ended_with_an_error_is_told_from_one_that_did_not_begin() {
        let end = |status: &str, reason: &str, message: &str| {
            let status = Status {
                status: Some(status.to_owned()),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                ..Status::default()
            };
            ended(Some(status), Output::default())
        };
        let (no, none) = ("no", "exec: \"thaw\": executable file not found in $PATH");
        assert_eq!(end("Success", "", no), Ok(Output::default()));
        for (reason, message, expected) in [
            (EXIT_CODE, no, ExecError::Failed as fn(String) -> ExecError),
            (EXIT_CODE, none, ExecError::Failed),
            ("InternalError", none, ExecError::NotBegun),
            ("InternalError", no, ExecError::Unknown),
        ] {
            let expected = Err(expected(message.to_owned()));
            assert_eq!(end("Failure", reason, message), expected);
        }
        assert!(matches!(
            ended(None, Output::default()),
            Err(ExecError::Unknown(_))
        ));
    }

    #[test]
    fn what_a_command_did_not_write_is_no_line() {
        let lines = |stdout: &str, stderr: &str| {
            let (stdout, stderr) = (stdout.to_owned(), stderr.to_owned());
            Output { stdout, stderr }.lines().collect::<Vec<_>>()
        };
        assert!(lines("", "").is_empty());
        assert_eq!(lines("done", ""), ["stdout: done"]);
        assert_eq!(lines("a", "b"), ["stdout: a", "stderr: b"]);
    }
}
