//! A Velero of its own in Jackline's namespace, told by its pods. Nothing in the API says for whom an object is, so two servers, or two
//! agents on a node, would both work on it.

use k8s_openapi::api::core::v1::{Container, Pod};

/// What a program of Velero's does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display)]
pub enum Role {
    /// `velero server`.
    #[strum(to_string = "server")]
    Server,
    /// `velero node-agent server`; before Velero 1.10 `velero restic server`.
    #[strum(to_string = "node agent")]
    NodeAgent,
}

/// What a pod of Velero's does, or will do; `None` for every other pod and for one that has ended.
pub fn role(pod: &Pod) -> Option<Role> {
    let phase = pod.status.as_ref()?.phase.as_deref();
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    pod.spec.as_ref()?.containers.iter().find_map(of_container)
}

fn of_container(container: &Container) -> Option<Role> {
    let command = container.command.as_deref().unwrap_or_default();
    let words = container.args.iter().flatten();
    let (program, words): (_, Vec<&String>) = match command.split_first() {
        Some((program, more)) => (program.as_str(), more.iter().chain(words).collect()),
        // The entry point of Velero's image.
        None => (image_name(container.image.as_deref()?), words.collect()),
    };
    if program.rsplit('/').next() != Some("velero") {
        return None;
    }
    let mut words = words.iter().filter(|word| !word.starts_with('-'));
    match words.next()?.as_str() {
        "server" => Some(Role::Server),
        "node-agent" | "restic" => (*words.next()? == "server").then_some(Role::NodeAgent),
        _ => None,
    }
}

/// `velero` of `docker.io/velero/velero:v1.14.1@sha256:…`.
fn image_name(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

/// What a person is told about the first of these pods that is a Velero's, its server before its agents.
pub fn at_work<'p>(pods: impl IntoIterator<Item = &'p Pod>) -> Option<String> {
    let found = pods.into_iter().filter_map(|pod| Some((role(pod)?, pod)));
    let (role, pod) = found.min_by_key(|(role, pod)| (*role, pod.metadata.name.as_ref()))?;
    Some(warning(pod, role))
}

/// What a person is told about such a pod.
pub fn warning(pod: &Pod, role: Role) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    format!(
        "pod {name} is a {role} of Velero in namespace {namespace}, and two would work on the same objects: scale the Deployment velero \
         to zero and take Velero's DaemonSet off the nodes, or run the controller with --engine velero"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(container: serde_json::Value, phase: &str) -> Option<Role> {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "other", "image": "x"}, container]}, "status": {"phase": phase}});
        role(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn servers_and_agents_are_told_from_everything_else() {
        let image = "docker.io/velero/velero:v1.14.1@sha256:00";
        for (container, want) in [
            (
                json!({"name": "velero", "image": "x", "command": ["/velero"], "args": ["server", "--uploader-type=restic"]}),
                Some(Role::Server),
            ),
            (
                json!({"name": "velero", "image": "x", "command": ["/velero", "--log-level=debug", "server"]}),
                Some(Role::Server),
            ),
            (
                json!({"name": "velero", "image": image, "args": ["server"]}),
                Some(Role::Server),
            ),
            (
                json!({"name": "node-agent", "image": "x", "command": ["/velero"], "args": ["node-agent", "server"]}),
                Some(Role::NodeAgent),
            ),
            (
                json!({"name": "restic", "image": image, "args": ["restic", "server"]}),
                Some(Role::NodeAgent),
            ),
            // A maintenance Job, a person's command, ourselves, somebody's image of that name.
            (
                json!({"name": "m", "image": "x", "command": ["/velero"], "args": ["repo-maintenance"]}),
                None,
            ),
            (
                json!({"name": "c", "image": image, "args": ["backup", "create", "server"]}),
                None,
            ),
            (
                json!({"name": "a", "image": "jackline/node-agent", "command": ["/usr/bin/jackline-node-agent"], "args": ["server"]}),
                None,
            ),
            (json!({"name": "v", "image": image}), None),
        ] {
            assert_eq!(found(container.clone(), "Running"), want, "{container}");
            assert_eq!(found(container.clone(), "Failed"), None, "{container}");
        }
    }
}
