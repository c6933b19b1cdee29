//! A page of `docs/` whose commands a test runs, as a reader would.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use jackline_test_cluster::Programs;

use crate::{Env, Velero};

/// The blocks in a language below one heading of a page.
///
/// # Errors
/// When there are none.
pub fn blocks(page: &str, heading: &str, language: &str) -> Result<String> {
    let section = page
        .split("\n## ")
        .find_map(|section| section.strip_prefix(heading)?.strip_prefix('\n'))
        .with_context(|| format!("no heading {heading:?}"))?;
    let fence = format!("```{language}\n");
    let blocks = section.split(&fence).skip(1);
    let text: String = blocks.filter_map(|rest| rest.split("```").next()).collect();
    ensure!(!text.is_empty(), "{heading}: no block of {language}");
    Ok(text)
}

/// Runs the shell commands below one heading of a page, in the cluster's own directory, and returns what they print.
///
/// # Errors
/// When there are none, or one fails, with what they said.
pub fn follow(env: &Env, velero: &Velero, page: &str, heading: &str) -> Result<String> {
    let script = blocks(page, heading, "sh")?;
    // The programs by the names that a reader types.
    let programs = tempfile::tempdir()?;
    let jackline = Programs::build()?.controller.with_file_name("jackline");
    let kubectl = env.cluster.kubectl_command([""; 0]);
    for (name, program) in [
        ("jackline", jackline.as_path()),
        ("kubectl", kubectl.get_program().as_ref()),
        ("velero", velero.program()),
    ] {
        std::os::unix::fs::symlink(program, programs.path().join(name))?;
    }
    let path = std::env::var("PATH")?;
    let output = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &script])
        .env("PATH", format!("{}:{path}", programs.path().display()))
        .env("KUBECONFIG", env.cluster.kubeconfig())
        .env("HOME", velero.home())
        .current_dir(env.cluster.dir())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{heading}: {said}{complaint}");
    Ok(said.into_owned())
}
