//! Commands in pods before and after their volumes are read.

use std::sync::atomic::{AtomicI32, Ordering};

use jackline_crds::velero::{
    BackupHooks, BackupResourceHook, BackupResourceHookSpec, HookErrorMode, HookStatus,
};
use jackline_policy::backup::{
    hook::{DEFAULT_TIMEOUT, Hook},
    names::{Names, Star},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{log::BackupLog, prepare};
use crate::{collect::PodFacts, context::Context};

/// How much of a command's output is kept for the log.
const OUTPUT: usize = 4096;

/// The hooks of a pod.
#[derive(Debug, Default)]
pub(super) struct PodHooks {
    pub(super) pre: Vec<Hook>,
    pub(super) post: Vec<Hook>,
}

impl PodHooks {
    pub(super) fn is_empty(&self) -> bool {
        self.pre.is_empty() && self.post.is_empty()
    }
}

/// Counts hooks.
#[derive(Debug, Default)]
pub(super) struct HookCount {
    attempted: AtomicI32,
    failed: AtomicI32,
}

impl HookCount {
    pub(super) fn status(&self) -> HookStatus {
        HookStatus {
            hooks_attempted: self.attempted.load(Ordering::Relaxed),
            hooks_failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// The hooks of a pod: its annotations', else the Backup's. A pod that has ended has none.
pub(super) fn of(pod: &PodFacts, spec: Option<&BackupHooks>) -> PodHooks {
    if matches!(pod.volumes.phase.as_str(), "Succeeded" | "Failed") {
        return PodHooks::default();
    }
    let from_spec = |pick: fn(&BackupResourceHookSpec) -> &[BackupResourceHook]| -> Vec<Hook> {
        let specs = spec
            .into_iter()
            .flat_map(|spec| &spec.resources)
            .filter(|spec| applies(spec, pod));
        specs
            .flat_map(pick)
            .map(|hook| of_spec(hook, pod))
            .collect()
    };
    PodHooks {
        pre: pod
            .pre
            .clone()
            .map_or_else(|| from_spec(|spec| &spec.pre), |hook| vec![hook]),
        post: pod
            .post
            .clone()
            .map_or_else(|| from_spec(|spec| &spec.post), |hook| vec![hook]),
    }
}

/// Whether a Backup's hooks are meant for a pod.
fn applies(spec: &BackupResourceHookSpec, pod: &PodFacts) -> bool {
    let includes = |include: &[String], exclude: &[String], names: &[&str]| {
        Names::new(include, exclude, Star::IncludeOnly).is_ok_and(|list| {
            names.iter().any(|name| list.includes(name))
                && !names.iter().any(|name| list.excludes(name))
        })
    };
    let selected = spec.label_selector.as_ref().is_none_or(|selector| {
        prepare::selector(selector).is_ok_and(|(_, selector)| selector.matches(&pod.labels))
    });
    selected
        && includes(
            &spec.included_namespaces,
            &spec.excluded_namespaces,
            &[&pod.volumes.namespace],
        )
        && includes(
            &spec.included_resources,
            &spec.excluded_resources,
            &["pods", "pod", "po"],
        )
}

fn of_spec(hook: &BackupResourceHook, pod: &PodFacts) -> Hook {
    let exec = &hook.exec;
    Hook {
        container: exec
            .container
            .clone()
            .unwrap_or_else(|| pod.container.clone()),
        command: exec.command.clone(),
        required: exec.on_error == Some(HookErrorMode::Fail),
        timeout: exec
            .timeout
            .filter(|timeout| !timeout.is_zero())
            .map_or(DEFAULT_TIMEOUT, |timeout| timeout.to_std()),
    }
}

/// Runs hooks one after another. `false`: a required one failed, and the pod is not to be backed up.
pub(super) async fn run(
    context: &Context,
    pod: &PodFacts,
    hooks: &[Hook],
    count: &HookCount,
    log: &BackupLog,
) -> bool {
    let volumes = &pod.volumes;
    let fields = [
        ("resource", "pods"),
        ("namespace", volumes.namespace.as_str()),
        ("name", volumes.name.as_str()),
    ];
    for hook in hooks {
        count.attempted.fetch_add(1, Ordering::Relaxed);
        let command = hook.command.join(" ");
        log.info(
            &format!(
                "running exec hook in container {}: {command}",
                hook.container
            ),
            &fields,
        );
        let result = match tokio::time::timeout(hook.timeout, exec(context, pod, hook)).await {
            Ok(result) => result,
            Err(_) => Err(format!("timed out after {:?}", hook.timeout)),
        };
        if let Err(why) = result {
            count.failed.fetch_add(1, Ordering::Relaxed);
            let fields = [fields[0], fields[1], fields[2], ("error", why.as_str())];
            log.error("Error executing hook", &fields);
            if hook.required {
                return false;
            }
        }
    }
    true
}

async fn exec(context: &Context, pod: &PodFacts, hook: &Hook) -> Result<(), String> {
    // The client for streams: a command may be silent for longer than a request may take.
    let api: Api<Pod> = Api::namespaced(context.clients.watch.clone(), &pod.volumes.namespace);
    let params = AttachParams::default()
        .container(&hook.container)
        .stdin(false)
        .stdout(true)
        .stderr(true);
    let process = api.exec(&pod.volumes.name, &hook.command, &params).await;
    let mut process = process.map_err(|error| error.to_string())?;
    let status = process.take_status();
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let (_, errors) = tokio::join!(drain(stdout), drain(stderr));
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
        Some(status) => {
            let message = status.message.unwrap_or_default();
            Err(format!("{message} {errors}").trim().to_owned())
        }
        None => Err("the connection broke before the command ended".to_owned()),
    }
}

/// Reads to the end and keeps the beginning.
async fn drain(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut buffer = vec![0; OUTPUT];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let room = OUTPUT.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    String::from_utf8_lossy(&kept).trim().to_owned()
}
