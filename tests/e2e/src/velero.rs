//! Velero's client as users run it: from outside the cluster, with a kubeconfig and nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use jackline_crds::velero::BackupStorageLocation;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tempfile::TempDir;

use crate::Env;

/// The client, pointed at one cluster.
#[derive(Debug)]
pub struct Velero {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// Where it keeps its settings, and what it downloads.
    home: TempDir,
}

impl Velero {
    /// Builds the client where that was not done before, and has the location give it addresses that it can reach.
    ///
    /// # Errors
    /// When it cannot be built, or there is no location `default`.
    pub async fn new(env: &Env) -> Result<Self> {
        let velero = Self::of(
            env,
            tokio::task::spawn_blocking(jackline_test_cluster::velero).await??,
        )?;
        let url = &env.cluster.s3().host_endpoint;
        let patch = Patch::Merge(json!({"spec": {"config": {"publicUrl": url}}}));
        let locations = env.api::<BackupStorageLocation>();
        locations
            .patch("default", &PatchParams::default(), &patch)
            .await?;
        Ok(velero)
    }

    /// Another release of the client; nothing else is changed.
    pub(crate) fn of(env: &Env, program: PathBuf) -> Result<Self> {
        let velero = Self {
            program,
            kubeconfig: env.cluster.kubeconfig(),
            home: TempDir::new()?,
        };
        velero.run("client config set colorized=false")?;
        Ok(velero)
    }

    /// The client's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A directory for files.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Runs it with arguments as a user types them, and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, arguments: &str) -> Result<String> {
        self.call(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// As [`Self::run`], for arguments with spaces.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.home.path())
            .current_dir(self.home.path())
            .output()
            .context("start velero")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "velero {arguments:?}: {complaint}{said}"
        );
        Ok(said + &complaint)
    }

    /// Runs it and looks for words in what it prints, whatever the space between them.
    ///
    /// # Errors
    /// When it fails, does not say them, or says that it could not find something out.
    pub fn says(&self, arguments: &str, wanted: &[&str]) -> Result<String> {
        let said = self.run(arguments)?;
        // What could not be had from the server or the bucket, the client says amid the rest.
        ensure!(!said.contains("<error"), "velero {arguments}: {said}");
        let words: Vec<&str> = said.split_whitespace().collect();
        let line = words.join(" ");
        for part in wanted {
            ensure!(
                line.contains(part),
                "velero {arguments}: {part:?} is missing in\n{said}"
            );
        }
        Ok(said)
    }
}
