//! Commands in pods before and after their volumes are read.

use jackline_crds::velero::{
    BackupHooks, BackupResourceHook, BackupResourceHookSpec, HookErrorMode,
};
use jackline_policy::backup::{
    hook::{DEFAULT_TIMEOUT, Hook},
    names::Names,
};

use super::{log::BackupLog, prepare};
use crate::{
    collect::PodFacts,
    context::Context,
    exec::{ExecError, HookCount, exec},
};

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
        Names::of_hook(include, exclude).is_ok_and(|list| {
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

/// What hooks have led to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outcome {
    /// A required one failed: the pod is not to be backed up.
    pub(super) forbidden: bool,
    /// One of them did its work, or may have.
    pub(super) effect: bool,
}

/// Runs hooks one after another.
pub(super) async fn run(
    context: &Context,
    pod: &PodFacts,
    hooks: &[Hook],
    count: &HookCount,
    log: &BackupLog,
) -> Outcome {
    let volumes = &pod.volumes;
    let mut outcome = Outcome::default();
    let fields = [
        ("resource", "pods"),
        ("namespace", volumes.namespace.as_str()),
        ("name", volumes.name.as_str()),
    ];
    for hook in hooks {
        count.add(1, 0);
        let command = hook.command.join(" ");
        log.info(
            &format!(
                "running exec hook in container {}: {command}",
                hook.container
            ),
            &fields,
        );
        let target = (volumes.namespace.as_str(), volumes.name.as_str());
        let result = exec(
            context,
            target,
            &hook.container,
            &hook.command,
            hook.timeout,
        );
        let result = result.await;
        outcome.effect |= !matches!(result, Err(ExecError::Failed(_)));
        if let Err(why) = result {
            count.add(0, 1);
            let why = why.to_string();
            let fields = [fields[0], fields[1], fields[2], ("error", why.as_str())];
            log.error("Error executing hook", &fields);
            outcome.forbidden |= hook.required;
            if hook.required {
                break;
            }
        }
    }
    outcome
}
