//! `maintain`: prune and check of one repository, run by the controller as a Job.
//!
//! The result goes to the termination message as JSON (so that the controller reads it from the pod) and to standard output.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use jackline_crds::velero::BackupRepository;
use jackline_holder::{ApiJudge, holder};
use jackline_repository::{
    CheckOptions, CheckReport, NoProgress, PruneOptions, PruneSummary, ReadData, Repository,
};
use jackline_runtime::{CancellationToken, Clients, RuntimeArgs, cluster::cluster_uid, logging};
use kube::Api;
use serde::Serialize;

use crate::{args::MaintainArgs, repos::Repositories};

/// The kubelet keeps 4096 bytes of a termination message.
const MESSAGE_BYTES: usize = 3000;

/// What the controller reads.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `Succeeded` or `Failed`.
    result: &'static str,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<PruneSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<CheckFigures>,
    /// Stored bytes of the repository afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    repository_bytes: Option<u64>,
}

/// A check report without its lists, which could be long.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckFigures {
    snapshots: u64,
    packs: u64,
    packs_read: u64,
    errors: usize,
    hints: usize,
    duration_ms: u64,
}

impl From<&CheckReport> for CheckFigures {
    fn from(report: &CheckReport) -> Self {
        Self {
            snapshots: report.snapshots,
            packs: report.packs,
            packs_read: report.packs_read,
            errors: report.errors.len(),
            hints: report.hints.len(),
            duration_ms: report.duration_ms,
        }
    }
}

/// Does what the arguments say and leaves the report.
///
/// # Errors
/// When anything failed; the report says it too.
pub async fn run(
    runtime: RuntimeArgs,
    namespace: String,
    args: MaintainArgs,
) -> anyhow::Result<()> {
    logging::init(&runtime.log)?;
    let mut report = Report::default();
    let result = maintain(&runtime, &namespace, &args, &mut report).await;
    crate::repos::leave().await;
    match &result {
        Ok(()) => report.result = "Succeeded",
        Err(error) => {
            report.result = "Failed";
            report.message = Some(cut(format!("{error:#}")));
        }
    }
    let json = serde_json::to_string(&report)?;
    println!("{json}");
    leave(&args.termination_log, &json);
    result
}

async fn maintain(
    runtime: &RuntimeArgs,
    namespace: &str,
    args: &MaintainArgs,
    report: &mut Report,
) -> anyhow::Result<()> {
    let cancel = jackline_runtime::shutdown::on_signals()?;
    let repository = open(runtime, namespace, args).await?;
    if !args.no_prune {
        let summary = prune(&repository, args, &cancel).await?;
        report.repository_bytes = Some(summary.bytes_after);
        report.prune = Some(summary);
    }
    if args.check || args.read_data.is_some() {
        let percent = args.read_data.unwrap_or(0.0).clamp(0.0, 100.0);
        let options = CheckOptions {
            read_data: ReadData::Percent(percent),
            no_lock: false,
        };
        let found = repository
            .check(options, &NoProgress, &cancel)
            .await
            .context("check")?;
        report.check = Some(CheckFigures::from(&found));
        if !found.is_ok() {
            let first: Vec<_> = found.errors.iter().take(3).map(String::as_str).collect();
            anyhow::bail!(
                "the repository is damaged ({} errors): {}",
                found.errors.len(),
                first.join("; ")
            );
        }
    }
    Ok(())
}

async fn prune(
    repository: &Repository,
    args: &MaintainArgs,
    cancel: &CancellationToken,
) -> anyhow::Result<PruneSummary> {
    let options = PruneOptions {
        max_unused_percent: args.prune_max_unused,
    };
    let summary = repository
        .prune(options, &NoProgress, cancel)
        .await
        .context("prune")?;
    tracing::info!(
        before = summary.bytes_before,
        after = summary.bytes_after,
        deleted = summary.packs_deleted,
        repacked = summary.packs_repacked,
        "pruned"
    );
    Ok(summary)
}

async fn open(
    runtime: &RuntimeArgs,
    namespace: &str,
    args: &MaintainArgs,
) -> anyhow::Result<Repository> {
    let clients = Clients::connect(&runtime.client).await?;
    let client = clients.call;
    let object = Api::<BackupRepository>::namespaced(client.clone(), namespace)
        .get(&args.repository)
        .await
        .with_context(|| format!("BackupRepository {namespace}/{}", args.repository))?;
    let cluster = cluster_uid(&client).await.context("the cluster's UID")?;
    let node = std::env::var("NODE_NAME").unwrap_or_default();
    let holder = holder(&cluster, &node, namespace);
    let judge = Arc::new(ApiJudge {
        client: client.clone(),
        namespace: namespace.to_owned(),
        mine: holder.instance.clone(),
    });
    let patience = args.lock_wait.max(Duration::from_secs(1));
    let repositories = Repositories::new(client, namespace, holder, judge, patience);
    let spec = &object.spec;
    Ok(repositories
        .get(&spec.backup_storage_location, &spec.volume_namespace, true)
        .await?)
}

fn leave(path: &Path, json: &str) {
    // Only the kubelet makes this file. Elsewhere standard output is enough.
    if !path.exists() {
        return;
    }
    if let Err(error) = std::fs::write(path, json) {
        tracing::warn!(%error, path = %path.display(), "the termination message cannot be written");
    }
}

fn cut(mut text: String) -> String {
    let mut end = MESSAGE_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_fits_a_termination_message() {
        let report = Report {
            result: "Failed",
            message: Some(cut("ü".repeat(5000))),
            prune: Some(PruneSummary::default()),
            check: Some(CheckFigures::from(&CheckReport::default())),
            repository_bytes: Some(u64::MAX),
        };
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.len() < 4096, "{}", json.len());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["result"], "Failed");
        assert_eq!(value["prune"]["bytes_before"], 0);
    }
}
