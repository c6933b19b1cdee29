//! Commands that run in a pod before and after its volumes are read.

use std::time::Duration;

use serde_json::Value;

/// Time a command has when it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// Before the volumes are read.
    Pre,
    /// After they have been read.
    Post,
}

/// A command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// The container; the pod's first when it does not say.
    pub container: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Whether a failure keeps the pod's volumes from being read. A failure counts as an error either way.
    pub required: bool,
    /// How long to wait for it.
    pub timeout: Duration,
}

/// The hook in a pod's annotations. `parse` reads a Go duration; one that cannot be read becomes the default, with a warning.
pub fn of_annotations(
    pod: &Value,
    when: When,
    parse: &dyn Fn(&str) -> Option<Duration>,
) -> (Option<Hook>, Option<String>) {
    let annotations = pod
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    let get = |key: &str| {
        let prefixes: &[&str] = match when {
            When::Pre => &["pre.hook.backup.velero.io/", "hook.backup.velero.io/"],
            When::Post => &["post.hook.backup.velero.io/"],
        };
        let value = |prefix: &&str| annotations?.get(&format!("{prefix}{key}"))?.as_str();
        prefixes
            .iter()
            .find_map(value)
            .filter(|value| !value.is_empty())
    };
    let Some(command) = get("command") else {
        return (None, None);
    };
    let (timeout, warning) = match get("timeout").map(|text| (text, parse(text))) {
        None => (DEFAULT_TIMEOUT, None),
        Some((_, Some(timeout))) if !timeout.is_zero() => (timeout, None),
        Some((text, _)) => (
            DEFAULT_TIMEOUT,
            Some(format!(
                "Unable to parse hook timeout {text:?}, using the default of 30s"
            )),
        ),
    };
    let hook = Hook {
        container: get("container").map_or_else(|| first_container(pod), str::to_owned),
        command: command_of(command),
        required: get("on-error") == Some("Fail"),
        timeout,
    };
    (Some(hook), warning)
}

/// The name of a pod's first container.
pub fn first_container(pod: &Value) -> String {
    pod.pointer("/spec/containers/0/name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

/// A JSON array of strings, or the name of one program.
pub(crate) fn command_of(text: &str) -> Vec<String> {
    if text.starts_with('[')
        && let Ok(command) = serde_json::from_str::<Vec<String>>(text)
        && !command.is_empty()
    {
        return command;
    }
    vec![text.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hook(when: When, annotations: Value) -> (Option<Hook>, Option<String>) {
        let pod = json!({
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{"name": "main"}, {"name": "side"}]},
        });
        of_annotations(&pod, when, &|text| {
            text.strip_suffix('s')?
                .parse()
                .ok()
                .map(Duration::from_secs)
        })
    }

    #[test]
    fn commands_are_arrays_or_single_programs() {
        let (found, _) = hook(
            When::Pre,
            json!({"pre.hook.backup.velero.io/command": "[\"/bin/sh\",\"-c\",\"sync\"]"}),
        );
        let found = found.unwrap();
        assert_eq!(found.command, ["/bin/sh", "-c", "sync"]);
        assert_eq!(
            (found.container.as_str(), found.required, found.timeout),
            ("main", false, DEFAULT_TIMEOUT)
        );
        let (found, _) = hook(
            When::Pre,
            json!({"hook.backup.velero.io/command": "/freeze now"}),
        );
        assert_eq!(found.unwrap().command, ["/freeze now"]);
        assert_eq!(
            hook(
                When::Post,
                json!({"hook.backup.velero.io/command": "/freeze"})
            ),
            (None, None)
        );
    }

    #[test]
    fn settings() {
        let (found, warning) = hook(
            When::Post,
            json!({
                "post.hook.backup.velero.io/command": "/thaw",
                "post.hook.backup.velero.io/container": "side",
                "post.hook.backup.velero.io/on-error": "Fail",
                "post.hook.backup.velero.io/timeout": "90s",
            }),
        );
        let found = found.unwrap();
        assert_eq!((found.container.as_str(), found.required), ("side", true));
        assert_eq!((found.timeout, warning), (Duration::from_secs(90), None));
        let (found, warning) = hook(
            When::Pre,
            json!({
                "pre.hook.backup.velero.io/command": "/x", "pre.hook.backup.velero.io/timeout": "soon",
            }),
        );
        assert_eq!(found.unwrap().timeout, DEFAULT_TIMEOUT);
        assert!(warning.unwrap().contains("soon"));
    }
}
