//! From signal to shutdown: the first SIGTERM or SIGINT asks every task to end, the second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that was told twice.
const ABORTED: i32 = 130;

/// Installs the signal handlers and gives the token that the first signal cancels.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            if first {
                tracing::info!(signal = name, "shutting down");
                cancel.cancel();
            } else {
                tracing::warn!(signal = name, "second signal: ending at once");
                std::process::exit(ABORTED);
            }
        }
    });
    Ok(token)
}
