//! The Job of one maintenance, made like the agents: their image, service account, environment and secrets, without the host's
//! directories.

use std::collections::BTreeMap;

use jackline_crds::{
    names::{NODE_AGENT, annotation, label, label_value},
    velero::{BackupRepository, MaintenanceResult},
};
use jackline_runtime::Failure;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        batch::v1::{Job, JobSpec},
        core::v1::{Container, Pod, PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{ResourceExt, api::ListParams};
use serde::{Deserialize, Serialize};

use crate::{agents, context::Context};

/// A Job, reduced to when it ran and how it ended.
#[derive(Debug, Clone, Default, Serialize, Deserialize, kube::Resource)]
#[resource(inherit = Job)]
pub struct MaintenanceJob {
    /// Name, labels and the like.
    pub metadata: ObjectMeta,
    /// How it goes.
    #[serde(default)]
    pub status: MaintenanceJobStatus,
}

/// How a Job goes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MaintenanceJobStatus {
    /// When it began.
    #[serde(default)]
    pub start_time: Option<Time>,
    /// When it succeeded.
    #[serde(default)]
    pub completion_time: Option<Time>,
    /// `Complete` and `Failed` end it.
    #[serde(default)]
    pub conditions: Vec<JobCondition>,
}

/// One condition of a Job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobCondition {
    /// Which.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// `True` or not.
    #[serde(default)]
    pub status: String,
    /// Since when.
    #[serde(default)]
    pub last_transition_time: Option<Time>,
    /// More words.
    #[serde(default)]
    pub message: Option<String>,
}

/// How a Job ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Good or bad.
    pub result: MaintenanceResult,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// The Job's own words, where it failed.
    pub message: Option<String>,
}

impl MaintenanceJob {
    /// `None` while it runs.
    pub fn outcome(&self) -> Option<Outcome> {
        let end = self.status.conditions.iter().find(|condition| {
            condition.status == "True" && matches!(condition.kind.as_str(), "Complete" | "Failed")
        })?;
        let created = self.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let start = self
            .status
            .start_time
            .as_ref()
            .map(|time| time.0)
            .or(created)?;
        let succeeded = end.kind == "Complete";
        let completed = self.status.completion_time.as_ref().filter(|_| succeeded);
        let time = completed.or(end.last_transition_time.as_ref());
        Some(Outcome {
            result: if succeeded {
                MaintenanceResult::Succeeded
            } else {
                MaintenanceResult::Failed
            },
            start,
            end: time.map_or(start, |time| time.0),
            message: end.message.clone(),
        })
    }
}

/// The label value of a repository's Jobs.
pub fn repository_label(repository: &str) -> String {
    label_value(repository)
}

const CONTAINER: &str = "velero-repo-maintenance-container";

/// The Job for a repository whose maintenance was due at `due`; `read_data`: it also checks, and reads so many percent of the data.
pub async fn desired(
    context: &Context,
    repository: &BackupRepository,
    due: Timestamp,
    read_data: Option<f64>,
) -> Result<Job, Failure> {
    let agents = context.api::<DaemonSet>().get_opt(NODE_AGENT).await?;
    let template = agents
        .and_then(|agents| agents.spec?.template.spec)
        .unwrap_or_default();
    let model = template.containers.first().cloned().unwrap_or_default();
    let image = context
        .args
        .agent_image
        .clone()
        .or_else(|| agents::image(&context.stores.agents))
        .or_else(|| model.image.clone())
        .ok_or_else(|| {
            Failure::waiting(
                std::time::Duration::from_secs(60),
                "NoAgentImage",
                "no image for maintenance: set --agent-image or run the DaemonSet node-agent",
            )
        })?;
    let name = repository.name_any();
    // Host directories are for volumes, which maintenance does not touch.
    let volumes: Vec<_> = template
        .volumes
        .unwrap_or_default()
        .into_iter()
        .filter(|volume| volume.host_path.is_none())
        .collect();
    let mounted = |name: &str| volumes.iter().any(|volume| volume.name == name);
    let mounts = model.volume_mounts.unwrap_or_default();
    let mounts = mounts
        .into_iter()
        .filter(|mount| mounted(&mount.name))
        .collect();
    let container = Container {
        name: CONTAINER.to_owned(),
        image: Some(image),
        image_pull_policy: model.image_pull_policy,
        command: Some(
            model
                .command
                .unwrap_or_else(|| vec!["jackline-node-agent".to_owned()]),
        ),
        args: Some(arguments(&name, &context.namespace, read_data)),
        env: model.env,
        env_from: model.env_from,
        volume_mounts: Some(mounts),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    };
    let checks = read_data.map(|_| (annotation::CHECKED_AT.to_owned(), due.to_string()));
    let labels = BTreeMap::from([(label::REPOSITORY_NAME.to_owned(), repository_label(&name))]);
    let owner = OwnerReference {
        api_version: "velero.io/v1".to_owned(),
        kind: "BackupRepository".to_owned(),
        name: name.clone(),
        uid: repository.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(job_name(&name, due)),
            namespace: Some(context.namespace.clone()),
            labels: Some(labels.clone()),
            annotations: Some(checks.into_iter().collect()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    containers: vec![container],
                    restart_policy: Some("Never".to_owned()),
                    service_account_name: template.service_account_name,
                    image_pull_secrets: template.image_pull_secrets,
                    node_selector: template.node_selector,
                    tolerations: template.tolerations,
                    priority_class_name: template.priority_class_name,
                    volumes: Some(volumes),
                    ..PodSpec::default()
                }),
            },
            ..JobSpec::default()
        }),
        ..Job::default()
    })
}

fn arguments(repository: &str, namespace: &str, read_data: Option<f64>) -> Vec<String> {
    let all = [
        "maintain",
        "--repository",
        repository,
        "--namespace",
        namespace,
    ];
    let mut arguments = all.map(str::to_owned).to_vec();
    if let Some(percent) = read_data {
        arguments.push("--check".to_owned());
        if percent > 0.0 {
            arguments.push(format!("--read-data={percent}"));
        }
    }
    arguments
}

/// Velero's form of name; the prefix gives way where the whole would be too long for a Job.
fn job_name(repository: &str, due: Timestamp) -> String {
    let millis = due.as_millisecond();
    let name = format!("{repository}-maintain-job-{millis}");
    if name.len() <= 63 {
        return name;
    }
    let short = jackline_crds::names::short_hash(repository, 8);
    format!("repo-maintain-job-{short}-{millis}")
}

/// Why a Job failed: what its pod left as last words, else the Job's own.
pub async fn message(context: &Context, job: &MaintenanceJob, outcome: &Outcome) -> String {
    let params = ListParams::default().labels(&format!("job-name={}", job.name_any()));
    let pods = context
        .api::<Pod>()
        .list(&params)
        .await
        .map(|list| list.items)
        .unwrap_or_default();
    let last_words = pods.iter().rev().find_map(|pod| {
        let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
        let terminated = statuses.first()?.state.as_ref()?.terminated.as_ref()?;
        terminated
            .message
            .clone()
            .filter(|text| !text.trim().is_empty())
    });
    let text = last_words
        .or_else(|| outcome.message.clone())
        .unwrap_or_else(|| "the Job failed without a word".to_owned());
    // The agent leaves its words as JSON.
    let spoken = serde_json::from_str::<serde_json::Value>(text.trim()).ok();
    let spoken = spoken.and_then(|words| words["message"].as_str().map(str::to_owned));
    let text = spoken.unwrap_or(text);
    let text = text.trim();
    // The end of a log says more than its beginning.
    let skip = text.chars().count().saturating_sub(1000);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_names_follow_from_the_due_time_and_fit() {
        let due = Timestamp::from_millisecond(1_700_000_000_123).unwrap();
        assert_eq!(
            job_name("shop-default-restic", due),
            "shop-default-restic-maintain-job-1700000000123"
        );
        let long = job_name(&"n".repeat(63), due);
        assert!(
            long.len() <= 63 && long.starts_with("repo-maintain-job-"),
            "{long}"
        );
    }

    #[test]
    fn outcomes_are_read_from_conditions() {
        let job: MaintenanceJob = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "j"},
            "status": {"startTime": "2026-01-01T00:00:00Z", "conditions": [
                {"type": "FailureTarget", "status": "True"},
                {"type": "Failed", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z", "message": "backoff limit"}]}
        }))
        .unwrap();
        let outcome = job.outcome().unwrap();
        assert_eq!(outcome.result, MaintenanceResult::Failed);
        assert_eq!(outcome.end.duration_since(outcome.start).as_secs(), 60);
        let running = MaintenanceJob {
            status: MaintenanceJobStatus::default(),
            ..job
        };
        assert!(running.outcome().is_none());
    }
}
