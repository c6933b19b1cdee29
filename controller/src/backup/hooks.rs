//! Commands in pods before and after their volumes are read.

use jackline_crds::velero::{
    BackupHooks, BackupResourceHook, BackupResourceHookSpec, HookErrorMode,
};
use jackline_policy::backup::{
    hook::{DEFAULT_TIMEOUT, Hook},
    names::Names,
};
use jackline_runtime::LeaderToken;

use super::{log::BackupLog, outcome::Outcome, prepare};
use crate::{
    collect::PodFacts,
    context::Context,
    exec::{ExecError, Output, exec},
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

/// Runs hooks one after another. What they have led to may still be undone by others: it is not over.
pub(super) async fn run(
    context: &Context,
    token: &LeaderToken,
    pod: &PodFacts,
    hooks: &[Hook],
    log: &BackupLog,
) -> Outcome {
    let volumes = &pod.volumes;
    let mut outcome = Outcome::default();
    for hook in hooks {
        // A leader that stood still between two hooks may have a successor that has thawed what the first one froze.
        if token.check().is_err() {
            break;
        }
        outcome.attempted += 1;
        let command = hook.command.join(" ");
        log.info(
            &format!(
                "running exec hook in container {}: {command}",
                hook.container
            ),
            &fields(pod),
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
        outcome.effect |= !matches!(result, Err(ExecError::NotBegun(_)));
        for line in result.iter().flat_map(Output::lines) {
            log.info(&line, &fields(pod));
        }
        if let Err(why) = result {
            let why = why.to_string();
            failed(pod, &why, log);
            outcome.errors.push(why);
            outcome.forbidden |= hook.required;
            if hook.required {
                break;
            }
        }
    }
    outcome
}

/// Hooks that cannot run have failed.
pub(super) fn not_run(pod: &PodFacts, hooks: &PodHooks, why: &str, log: &BackupLog) -> Outcome {
    let why = format!("not run: the pod cannot be marked as one whose post hooks are owed: {why}");
    let count = hooks.pre.len() + hooks.post.len();
    for _ in 0..count {
        failed(pod, &why, log);
    }
    Outcome {
        attempted: i32::try_from(count).unwrap_or(i32::MAX),
        errors: vec![why; count],
        forbidden: hooks.pre.iter().any(|hook| hook.required),
        effect: false,
        over: true,
    }
}

/// Says that a hook has failed.
pub(super) fn failed(pod: &PodFacts, why: &str, log: &BackupLog) {
    let [resource, namespace, name] = fields(pod);
    log.error(
        "Error executing hook",
        &[resource, namespace, name, ("error", why)],
    );
}

/// How the log names a pod.
pub(super) fn fields(pod: &PodFacts) -> [(&str, &str); 3] {
    [
        ("resource", "pods"),
        ("namespace", &pod.volumes.namespace),
        ("name", &pod.volumes.name),
    ]
}
