//! The two programs, called the same way.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::limit::MemoryLimit;

const PASSWORD: &str = "bench";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tool {
    Restic,
    Jackline,
}

/// Where a repository is, as both programs are told.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) name: OsString,
    /// Credentials.
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Repository {
    pub(crate) fn directory(path: &Path) -> Self {
        Self {
            name: path.into(),
            environment: Vec::new(),
        }
    }
}

/// Both programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) jackline: PathBuf,
    /// What Jackline has to manage with. restic may use what there is.
    pub(crate) limit: Option<MemoryLimit>,
}

impl Programs {
    /// The repository's place, the tool's own cache and its password are in the environment.
    pub(crate) fn command(&self, tool: Tool, repository: &Repository, cache: &Path) -> Command {
        let mut command = match tool {
            Tool::Restic => Command::new("restic"),
            Tool::Jackline => {
                let mut command = match &self.limit {
                    Some(limit) => limit.command(&self.jackline),
                    None => Command::new(&self.jackline),
                };
                command.arg("repository");
                command
            }
        };
        command
            .env("RESTIC_REPOSITORY", &repository.name)
            .envs(repository.environment.iter().cloned())
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_CACHE_DIR", cache)
            .env_remove("RESTIC_PASSWORD_FILE");
        command
    }

    /// What the two call themselves.
    pub(crate) fn versions(&self) -> Result<[String; 2]> {
        let say = |command: &mut Command| -> Result<String> {
            let output = command
                .output()
                .with_context(|| format!("start {command:?}"))?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        Ok([
            say(Command::new("restic").arg("version"))?,
            say(Command::new(&self.jackline).arg("--version"))?,
        ])
    }
}
