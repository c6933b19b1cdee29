//! Hooks of a restored pod (velero-compat §7.6): init containers that it gets, and commands that run in it when it is back. What the
//! pod's annotations say counts; the restore's own hooks are for pods that say nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    json::{list, map_mut},
    wait,
};
use crate::{
    backup::{
        hook::{DEFAULT_TIMEOUT, command_of},
        names::Names,
    },
    labels::{Labels, Selector},
};

/// A pod as far as its hooks go.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// Where it is restored to.
    pub namespace: &'a str,
    pub labels: &'a Labels,
    pub annotations: &'a Labels,
}

/// A command that runs in a container of a restored pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    pub name: String,
    /// The container; the pod's first where it is `None`.
    pub container: Option<String>,
    pub command: Vec<String>,
    /// Whether the pod's other commands are left out when this fails. It counts as an error either way.
    pub required: bool,
    /// How long it may take.
    pub timeout: Duration,
    /// How long the container is waited for; `None`: as long as the restore waits for anything.
    pub wait: Option<Duration>,
    /// Whether the container has to be ready, not only to run.
    pub ready: bool,
}

/// Hooks of a restore, and the pods they are for.
#[derive(Debug, Clone)]
pub struct SpecHooks {
    pub namespaces: Names,
    pub selector: Selector,
    /// Containers as the core API has them.
    pub init: Vec<Value>,
    pub exec: Vec<Exec>,
}

impl SpecHooks {
    fn are_for(&self, pod: &Pod<'_>) -> bool {
        self.namespaces.includes(pod.namespace) && self.selector.matches(pod.labels)
    }
}

/// The init containers that a pod gets. `id` makes the name of one that has none.
pub fn init(pod: &Pod<'_>, spec: &[SpecHooks], id: &str) -> Vec<Value> {
    let annotation = |key: &str| {
        let found = pod
            .annotations
            .get(&format!("init.hook.restore.velero.io/{key}"));
        found.filter(|value| !value.is_empty())
    };
    let Some(image) = annotation("container-image") else {
        let hooks = spec.iter().filter(|hooks| hooks.are_for(pod));
        return hooks.flat_map(|hooks| hooks.init.clone()).collect();
    };
    let name = annotation("container-name")
        .map_or_else(|| format!("velero-restore-init-{id}"), str::to_owned);
    let mut container = json!({"name": name, "image": image});
    if let Some(command) = annotation("command") {
        container["command"] = json!(command_of(command));
    }
    vec![container]
}

/// Puts init containers behind the waiter and before all others. One of the same name gives way: a pod that was restored before has
/// them already. The waiter never does; a second one of its name is for the API server to refuse.
pub fn insert(pod: &mut Value, containers: Vec<Value>) {
    if containers.is_empty() {
        return;
    }
    let named = |entry: &Value| {
        entry["name"] != wait::NAME && containers.iter().any(|new| new["name"] == entry["name"])
    };
    let mut all: Vec<Value> = list(pod, "/spec/initContainers").to_vec();
    all.retain(|entry| !named(entry));
    let waits = all.first().is_some_and(|first| first["name"] == wait::NAME);
    let at = usize::from(waits);
    all.splice(at..at, containers);
    if let Some(spec) = map_mut(pod, &["spec"]) {
        spec.insert("initContainers".to_owned(), Value::Array(all));
    }
}

/// The commands that run in a pod, in their order, and what is wrong with its annotations. `parse` reads a Go duration.
pub fn exec(
    pod: &Pod<'_>,
    spec: &[SpecHooks],
    parse: &dyn Fn(&str) -> Option<Duration>,
) -> (Vec<Exec>, Vec<String>) {
    let annotation = |key: &str| {
        let found = pod
            .annotations
            .get(&format!("post.hook.restore.velero.io/{key}"));
        found.filter(|value| !value.is_empty())
    };
    let Some(command) = annotation("command") else {
        let hooks = spec.iter().filter(|hooks| hooks.are_for(pod));
        return (
            hooks.flat_map(|hooks| hooks.exec.clone()).collect(),
            Vec::new(),
        );
    };
    let mut warnings = Vec::new();
    let mut duration = |key: &str| {
        let text = annotation(key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            warnings.push(format!(
                "Unable to parse post.hook.restore.velero.io/{key} {text:?}, ignoring"
            ));
        }
        parsed.filter(|time| !time.is_zero())
    };
    let (timeout, wait) = (duration("exec-timeout"), duration("wait-timeout"));
    let ready = match annotation("wait-for-ready") {
        None => false,
        Some(text) => go_bool(text).unwrap_or_else(|| {
            let why = "Unable to parse post.hook.restore.velero.io/wait-for-ready";
            warnings.push(format!("{why} {text:?}, ignoring"));
            false
        }),
    };
    let hook = Exec {
        name: "<from-annotation>".to_owned(),
        container: annotation("container").map(str::to_owned),
        command: command_of(command),
        required: annotation("on-error") == Some("Fail"),
        timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
        wait,
        ready,
    };
    (vec![hook], warnings)
}

/// Reads the words of Go's ParseBool.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The commands by container, in the order in which the containers are first named.
pub fn by_container(hooks: Vec<Exec>, first: &str) -> Vec<(String, Vec<Exec>)> {
    let mut groups: Vec<(String, Vec<Exec>)> = Vec::new();
    for hook in hooks {
        let container = hook.container.clone().unwrap_or_else(|| first.to_owned());
        match groups.iter_mut().find(|(name, _)| *name == container) {
            Some((_, group)) => group.push(hook),
            None => groups.push((container, vec![hook])),
        }
    }
    groups
}

/// How long the containers are waited for: as long as the most patient command; `None` where one sets no limit.
pub fn longest_wait(groups: &[(String, Vec<Exec>)]) -> Option<Duration> {
    let waits = groups
        .iter()
        .flat_map(|(_, hooks)| hooks)
        .map(|hook| hook.wait);
    waits.collect::<Option<Vec<_>>>()?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::names::Star;
    use std::collections::BTreeMap;

    type Annotations = BTreeMap<&'static str, &'static str>;

    fn with<T>(
        annotations: &Annotations,
        labels: &[(&str, &str)],
        test: impl Fn(&Pod<'_>) -> T,
    ) -> T {
        let pairs = annotations.iter().map(|(key, value)| (*key, *value));
        test(&Pod {
            namespace: "shop",
            labels: &labels.iter().copied().collect(),
            annotations: &pairs.collect(),
        })
    }

    fn seconds(text: &str) -> Option<Duration> {
        text.strip_suffix('s')?
            .parse()
            .ok()
            .map(Duration::from_secs)
    }

    fn command(name: &str, container: Option<&str>, wait: Option<u64>) -> Exec {
        Exec {
            name: name.to_owned(),
            container: container.map(str::to_owned),
            command: vec!["/x".to_owned()],
            required: false,
            timeout: DEFAULT_TIMEOUT,
            wait: wait.map(Duration::from_secs),
            ready: false,
        }
    }

    fn hooks(namespaces: &[&str], labels: &[(&str, &str)], name: &str) -> SpecHooks {
        let namespaces: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        SpecHooks {
            namespaces: Names::new(&namespaces, &[], Star::IncludeOnly).unwrap(),
            selector: Selector::new("s", labels.iter().copied(), []).unwrap(),
            init: vec![json!({"name": name})],
            exec: vec![command(name, None, None)],
        }
    }

    #[test]
    fn the_restores_hooks_are_for_pods_that_say_nothing() {
        let spec = [
            hooks(&[], &[], "all"),
            hooks(&["shop"], &[("app", "db")], "db"),
            hooks(&["bank"], &[], "bank"),
        ];
        let names = |pod: &Pod<'_>| -> Vec<String> {
            let init = init(pod, &spec, "id");
            let (exec, _) = exec(pod, &spec, &seconds);
            let init = init
                .iter()
                .map(|container| container["name"].as_str().unwrap().to_owned());
            init.chain(exec.into_iter().map(|hook| hook.name)).collect()
        };
        let none = Annotations::new();
        assert_eq!(
            with(&none, &[("app", "db")], names),
            ["all", "db", "all", "db"]
        );
        assert_eq!(with(&none, &[], names), ["all", "all"]);
        let own = [
            ("init.hook.restore.velero.io/container-image", "i"),
            ("post.hook.restore.velero.io/command", "c"),
        ];
        let own = Annotations::from(own);
        assert_eq!(
            with(&own, &[], names),
            ["velero-restore-init-id", "<from-annotation>"]
        );
    }

    #[test]
    fn annotations_name_an_init_container() {
        let annotations = Annotations::from([
            ("init.hook.restore.velero.io/container-image", "box:1"),
            ("init.hook.restore.velero.io/container-name", "fix"),
            (
                "init.hook.restore.velero.io/command",
                "[\"/bin/ash\",\"-c\",\"date\"]",
            ),
        ]);
        assert_eq!(
            with(&annotations, &[], |pod| init(pod, &[], "id")),
            [json!({"name": "fix", "image": "box:1", "command": ["/bin/ash", "-c", "date"]})]
        );
        let bare = Annotations::from([("init.hook.restore.velero.io/container-image", "box:1")]);
        assert_eq!(
            with(&bare, &[], |pod| init(pod, &[], "id")),
            [json!({"name": "velero-restore-init-id", "image": "box:1"})]
        );
    }

    #[test]
    fn they_come_behind_the_waiter_and_once() {
        let mut pod = json!({"spec": {"initContainers": [{"name": "restore-wait"}, {"name": "fix", "image": "old"}, {"name": "own"}]}});
        insert(&mut pod, vec![json!({"name": "fix", "image": "new"})]);
        assert_eq!(
            pod["spec"]["initContainers"],
            json!([{"name": "restore-wait"}, {"name": "fix", "image": "new"}, {"name": "own"}])
        );
        insert(
            &mut pod,
            vec![json!({"name": "restore-wait", "image": "mine"})],
        );
        assert_eq!(
            pod["spec"]["initContainers"][0],
            json!({"name": "restore-wait"})
        );
        let mut bare = json!({"spec": {}});
        insert(&mut bare, vec![json!({"name": "a"}), json!({"name": "b"})]);
        assert_eq!(
            bare["spec"]["initContainers"],
            json!([{"name": "a"}, {"name": "b"}])
        );
        insert(&mut bare, vec![]);
        assert_eq!(bare["spec"]["initContainers"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn annotations_say_how_a_command_runs() {
        let annotations = Annotations::from([
            (
                "post.hook.restore.velero.io/command",
                "[\"psql\",\"-c\",\"select 1\"]",
            ),
            ("post.hook.restore.velero.io/container", "side"),
            ("post.hook.restore.velero.io/on-error", "Fail"),
            ("post.hook.restore.velero.io/exec-timeout", "5s"),
            ("post.hook.restore.velero.io/wait-timeout", "60s"),
            ("post.hook.restore.velero.io/wait-for-ready", "true"),
        ]);
        let (found, warnings) = with(&annotations, &[], |pod| exec(pod, &[], &seconds));
        let wanted = Exec {
            name: "<from-annotation>".to_owned(),
            container: Some("side".to_owned()),
            command: ["psql", "-c", "select 1"].map(str::to_owned).into(),
            required: true,
            timeout: Duration::from_secs(5),
            wait: Some(Duration::from_secs(60)),
            ready: true,
        };
        assert_eq!((found, warnings), (vec![wanted], vec![]));
        let wrong = Annotations::from([
            ("post.hook.restore.velero.io/command", "/x"),
            ("post.hook.restore.velero.io/exec-timeout", "soon"),
            ("post.hook.restore.velero.io/wait-for-ready", "perhaps"),
        ]);
        let (found, warnings) = with(&wrong, &[], |pod| exec(pod, &[], &seconds));
        assert_eq!(
            (found[0].timeout, found[0].ready, found[0].wait),
            (DEFAULT_TIMEOUT, false, None)
        );
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn commands_are_grouped_and_the_most_patient_decides() {
        let all = vec![
            command("a", None, Some(5)),
            command("b", Some("side"), Some(9)),
            command("c", Some("main"), Some(7)),
        ];
        let groups = by_container(all, "main");
        let names: Vec<Vec<&str>> = groups
            .iter()
            .map(|(_, group)| group.iter().map(|hook| hook.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a", "c"], vec!["b"]]);
        assert_eq!(longest_wait(&groups), Some(Duration::from_secs(9)));
        let endless = by_container(
            vec![command("a", None, Some(5)), command("b", None, None)],
            "m",
        );
        assert_eq!(longest_wait(&endless), None);
    }
}
