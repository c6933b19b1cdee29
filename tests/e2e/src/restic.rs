//! Debian's restic on a namespace's repository: the referee.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use jackline_test_cluster::S3;
use serde_json::Value;

/// restic, pointed at one repository.
#[derive(Debug, Clone)]
pub struct Restic {
    environment: Vec<(&'static str, String)>,
}

impl Restic {
    /// On the repository of a namespace in a bucket of a cluster's object storage.
    #[must_use]
    pub fn new(s3: &S3, bucket: &str, namespace: &str, password: &str) -> Self {
        let repository = format!("s3:{}/{bucket}/restic/{namespace}", s3.host_endpoint);
        let mut environment = s3.environment().to_vec();
        environment.push(("RESTIC_REPOSITORY", repository));
        environment.push(("RESTIC_PASSWORD", password.to_owned()));
        Self { environment }
    }

    /// What points restic, or a program that takes the same, at the repository.
    pub fn environment(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
    }

    /// Runs restic and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = Command::new("restic")
            .args(["--no-cache"])
            .args(args)
            .envs(self.environment())
            .output()
            .context("start restic")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "restic {}: {}{said}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// Reads every byte of the repository, without a lock: a process may have been killed a moment ago.
    ///
    /// # Errors
    /// When restic finds anything wrong.
    pub fn check(&self) -> Result<()> {
        let said = self.run(&["check", "--read-data", "--no-lock"])?;
        ensure!(said.contains("no errors were found"), "{said}");
        Ok(())
    }

    /// The snapshots as restic's JSON has them.
    ///
    /// # Errors
    /// When restic fails.
    pub fn snapshots(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(&self.run(&[
            "snapshots",
            "--json",
            "--no-lock",
        ])?)?)
    }

    /// The names of the lock files.
    ///
    /// # Errors
    /// When restic fails.
    pub fn locks(&self) -> Result<Vec<String>> {
        let said = self.run(&["list", "locks", "--no-lock"])?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }
}
