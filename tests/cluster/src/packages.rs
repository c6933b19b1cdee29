//! The Debian packages that the cluster needs.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Installs what is missing, says so on standard error, and fails naming what cannot be had.
pub(crate) fn install() -> Result<()> {
    let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../bootstrap"));
    let status = Command::new(script)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start {}", script.display()))?;
    ensure!(
        status.success(),
        "the packages that the cluster needs are not there"
    );
    Ok(())
}
