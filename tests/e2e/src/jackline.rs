//! The command line `jackline`, as a person uses it from outside the cluster.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use jackline_test_cluster::Programs;

use crate::Env;

/// The program, pointed at one cluster.
#[derive(Debug)]
pub struct Jackline {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Jackline {
    /// Of the programs that the cluster runs.
    ///
    /// # Errors
    /// When they are not built.
    pub fn new(env: &Env) -> Result<Self> {
        Ok(Self {
            program: Programs::build()?.controller.with_file_name("jackline"),
            kubeconfig: env.cluster.kubeconfig(),
        })
    }

    /// Runs it, well or ill.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command.output().context("start jackline")
    }

    /// Runs it, and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, arguments: &str) -> Result<String> {
        let output = self.output(&arguments.split_whitespace().collect::<Vec<_>>())?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "jackline {arguments}: {complaint}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs what is to be refused, and returns why it was.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, arguments: &str) -> Result<String> {
        let output = self.output(&arguments.split_whitespace().collect::<Vec<_>>())?;
        ensure!(
            output.status.code() == Some(1),
            "jackline {arguments}: {output:?}"
        );
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
