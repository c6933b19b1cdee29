//! Where the repository is, its password, and how the user stops a command.

use std::path::Path;
use std::sync::Arc;

use jackline_repository::{OpenOptions, Password};
use jackline_storage::ObjectStore;
use jackline_storage::fs::LocalStore;
use jackline_storage::s3::{S3Config, S3Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::RepositoryArgs;
use crate::exit::Exit;
use crate::output;

/// Kinds of repositories that restic knows and this program does not.
const OTHERS: [&str; 8] = [
    "rest:",
    "sftp:",
    "b2:",
    "azure:",
    "gs:",
    "swift:",
    "rclone:",
    "s3-outposts:",
];

pub(super) async fn store(args: &RepositoryArgs) -> Result<Arc<dyn ObjectStore>, Exit> {
    let Some(repo) = args.repo.as_deref().filter(|repo| !repo.is_empty()) else {
        return Err(Exit::failed(
            "which repository? Give --repo or set RESTIC_REPOSITORY",
        ));
    };
    if repo.starts_with("s3:") {
        let mut config = S3Config::from_restic(repo)?;
        config.insecure = args.insecure_tls;
        config.ca_cert = args.cacert.as_deref().map(read).transpose()?;
        return Ok(Arc::new(S3Store::connect(config).await?));
    }
    if let Some(kind) = OTHERS.iter().find(|kind| repo.starts_with(**kind)) {
        return Err(Exit::failed(format!(
            "{kind} repositories are not supported; supported: a directory, s3:…"
        )));
    }
    let path = repo.strip_prefix("local:").unwrap_or(repo);
    let path =
        std::path::absolute(path).map_err(|error| Exit::failed(format!("{path}: {error}")))?;
    Ok(Arc::new(LocalStore::new(path)))
}

pub(super) fn options(args: &RepositoryArgs) -> Result<OpenOptions, Exit> {
    Ok(OpenOptions::new(password(args)?).with_lock_wait(args.retry_lock))
}

fn password(args: &RepositoryArgs) -> Result<Password, Exit> {
    let password = match (&args.password_file, std::env::var("RESTIC_PASSWORD")) {
        (Some(file), _) => return password_in(file),
        (None, Ok(password)) => password,
        (None, Err(_)) => {
            return Err(Exit::failed(
                "which password? Give --password-file or set RESTIC_PASSWORD or RESTIC_PASSWORD_FILE",
            ));
        }
    };
    not_empty(&password)
}

/// The password in a file.
pub(super) fn password_in(file: &Path) -> Result<Password, Exit> {
    let text = String::from_utf8(read(file)?)
        .map_err(|_| Exit::failed(format!("{}: not UTF-8", file.display())))?;
    // As restic: a byte order mark and white space around it are not part of the password.
    not_empty(text.trim_start_matches('\u{feff}').trim())
}

fn not_empty(password: &str) -> Result<Password, Exit> {
    if password.is_empty() {
        return Err(Exit::failed("the password is empty"));
    }
    Ok(Password::new(password))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, Exit> {
    std::fs::read(path).map_err(|error| Exit::failed(format!("{}: {error}", path.display())))
}

/// The first signal ends the command in order, so that its lock goes; the second ends the process.
pub(super) fn cancelled_by_signals() -> Result<CancellationToken, Exit> {
    let token = CancellationToken::new();
    let [interrupt, terminate, hangup] = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let mut next = [interrupt?, terminate?];
    // restic asks a lock's holder on the same host by SIGHUP whether it lives.
    let ignored = hangup?;
    let cancel = token.clone();
    tokio::spawn(async move {
        let _ignored = ignored;
        any(&mut next).await;
        output::note("jackline: stopping; once more to stop at once");
        cancel.cancel();
        any(&mut next).await;
        std::process::exit(130);
    });
    Ok(token)
}

async fn any([one, other]: &mut [Signal; 2]) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
