//! Hooks of restored pods: init containers are put in when a pod is made; from then on its commands wait for their containers, beside the
//! objects that are still to come and the data that other pods wait for.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use jackline_crds::{
    GoDuration,
    names::annotation,
    velero::{ExecRestoreHook, HookErrorMode, RestoreResourceHookSpec, RestoreSpec},
};
use jackline_policy::{
    backup::{hook::DEFAULT_TIMEOUT, names::Names},
    labels::Labels,
    restore::{
        hook::{self, Exec, SpecHooks},
        json,
    },
};
use jackline_runtime::{Failure, Key};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::Patch};
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::{
    cluster::{is_passing, patiently},
    over, params,
    pods::RestoredPod,
    report::Place,
    run::{MadePod, Run},
    validate,
};
use crate::{
    exec::{HookCount, Output, exec},
    location::chain,
};

/// How long the watch may take to see what was just made.
const SEEN: Duration = Duration::from_secs(30);
/// How long a pod may take to go on when its data is back.
const GOES_ON: Duration = Duration::from_secs(60);
/// How long a container may take to come up once the data is back, where nothing says how long.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);
/// How often a deadline is looked at; changes of a pod are seen at once.
const TICK: Duration = Duration::from_secs(1);

/// The hooks of a restore's specification.
///
/// # Errors
/// What is wrong with the first wrong one.
pub fn of_spec(spec: &RestoreSpec) -> Result<Vec<SpecHooks>, String> {
    let hooks = spec.hooks.iter().flat_map(|hooks| &hooks.resources);
    let hooks = hooks.enumerate();
    let parsed = hooks.map(|(at, hooks)| {
        let field = format!("spec.hooks.resources[{at}]");
        of_resources(&field, hooks)
    });
    Ok(parsed
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// `None` where it is not for pods: nothing else has hooks.
fn of_resources(field: &str, spec: &RestoreResourceHookSpec) -> Result<Option<SpecHooks>, String> {
    let names = |include: &[String], exclude: &[String]| {
        let names = Names::of_hook(include, exclude);
        names.map_err(|errors| format!("{field}: {}", errors.join("; ")))
    };
    let resources = names(&spec.included_resources, &spec.excluded_resources)?;
    let pods = ["pods", "pod", "po"];
    if !pods.iter().any(|name| resources.includes(name))
        || pods.iter().any(|name| resources.excludes(name))
    {
        return Ok(None);
    }
    let selector = spec.label_selector.as_ref();
    let selector =
        selector.map(|selector| validate::parse(&format!("{field}.labelSelector"), selector));
    let init = spec.post_hooks.iter().filter_map(|hook| hook.init.as_ref());
    let exec = spec.post_hooks.iter().filter_map(|hook| hook.exec.as_ref());
    Ok(Some(SpecHooks {
        namespaces: names(&spec.included_namespaces, &spec.excluded_namespaces)?,
        selector: selector.transpose()?.unwrap_or_default(),
        init: init
            .flat_map(|hook| hook.init_containers.0.clone())
            .collect(),
        exec: exec.map(|hook| of_exec(&spec.name, hook)).collect(),
    }))
}

fn of_exec(name: &str, hook: &ExecRestoreHook) -> Exec {
    let time =
        |time: Option<GoDuration>| time.map(GoDuration::to_std).filter(|time| !time.is_zero());
    Exec {
        name: name.to_owned(),
        container: hook.container.clone(),
        command: hook.command.clone(),
        required: hook.on_error == Some(HookErrorMode::Fail),
        timeout: time(hook.exec_timeout).unwrap_or(DEFAULT_TIMEOUT),
        wait: time(hook.wait_timeout),
        ready: hook.wait_for_ready == Some(true),
    }
}

/// Why commands of a pod do not run any more.
enum Over {
    /// A required one failed.
    Failed,
    Gone,
    Ended(String),
    /// It still waits for data although no more comes.
    NoData,
    Late,
    /// It cannot be written down that they begin.
    Unnoted(String),
}

/// What an earlier run wrote down on a pod about its commands: they have begun, and when all were over, how many there were and how
/// many of them failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    Begun,
    Ended(i32, i32),
}

impl Noted {
    fn text(self, restore: &str) -> String {
        match self {
            Self::Begun => restore.to_owned(),
            Self::Ended(attempted, failed) => format!("{restore} {attempted}/{failed}"),
        }
    }

    /// `None` where it is of another restore.
    fn read(text: &str, restore: &str) -> Option<Self> {
        let rest = text.strip_prefix(restore)?;
        let ended = || {
            let (attempted, failed) = rest.strip_prefix(' ')?.split_once('/')?;
            Some(Self::Ended(attempted.parse().ok()?, failed.parse().ok()?))
        };
        // What cannot be read has begun at least.
        Some(ended().unwrap_or(Self::Begun))
    }
}

impl Run<'_> {
    /// Puts the init containers of its hooks into a pod that is about to be made.
    pub fn add_init_hooks(&self, namespace: &str, pod: &mut Value) {
        let facts = hook::Pod {
            namespace,
            labels: &pairs(&pod["metadata"]["labels"]),
            annotations: &pairs(&pod["metadata"]["annotations"]),
        };
        let id = self.uid.get(..8).unwrap_or(&self.uid);
        let containers = hook::init(&facts, &self.valid.hooks, id);
        hook::insert(pod, containers);
    }

    /// Runs the commands of every pod that this restore makes, from when it is told of it.
    ///
    /// # Errors
    /// When this process may not act any more.
    pub async fn run_hooks(&self, mut made: UnboundedReceiver<MadePod>) -> Result<(), Failure> {
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                pod = made.recv() => match pod {
                    Some(pod) => running.push(self.hooks_of(pod)),
                    None => break,
                },
                Some(ended) = running.next() => ended?,
            }
        }
        running.try_collect().await
    }

    async fn hooks_of(&self, ((source, name), uid): MadePod) -> Result<(), Failure> {
        let namespace = self.target(&source);
        let (name, uid) = (name.as_str(), uid.as_str());
        // Made a moment ago: the watch may not have seen it yet.
        let place = Place::Namespace(namespace);
        let key = Key::namespaced(namespace, name);
        let seen = self.restored_pods.wait_for(|_| self.live(&key, uid));
        let pod = match tokio::time::timeout(SEEN, seen).await {
            Ok(pod) => Some(pod),
            // The watch may be further behind.
            Err(_) => self.pod_of(namespace, name, uid).await?,
        };
        let Some(pod) = pod else {
            let stored = self.catalog.find("pods", Some(&source), name);
            let command = "post.hook.restore.velero.io/command";
            let own = stored.is_some_and(|pod| json::annotation(&pod, command).is_some());
            if own || !self.valid.hooks.is_empty() {
                let why = format!(
                    "pod {name} has gone since it was made: its hooks, if any, did not run"
                );
                self.report.warning(place, &why);
            }
            return Ok(());
        };
        let first = pod.spec.containers.first();
        let first = first
            .map(|container| container.name.clone())
            .unwrap_or_default();
        let facts = hook::Pod {
            namespace,
            labels: &pod.labels().clone().into_iter().collect(),
            annotations: &pod.annotations().clone().into_iter().collect(),
        };
        let parse = |text: &str| text.parse::<GoDuration>().ok().map(GoDuration::to_std);
        let (hooks, warnings) = hook::exec(&facts, &self.valid.hooks, &parse);
        for warning in warnings {
            self.report
                .warning(place, &format!("pod {name}: {warning}"));
        }
        let known: BTreeSet<&str> = pod
            .spec
            .containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        let (groups, unknown): (Vec<_>, Vec<_>) = hook::by_container(hooks, &first)
            .into_iter()
            .partition(|(container, _)| known.contains(container.as_str()));
        for (container, _) in unknown {
            let why = format!(
                "pod {name} does not have container {container}: discarding post-restore exec hooks"
            );
            self.report.warning(place, &why);
        }
        if groups.is_empty() {
            return Ok(());
        }
        let noted = pod.annotations().get(annotation::RESTORE_HOOKS);
        match noted.and_then(|noted| Noted::read(noted, &self.uid)) {
            None => {}
            // A command may do harm when it runs twice, and how far it came nobody knows: not a restore that went well.
            Some(Noted::Begun) => {
                let count = groups.iter().map(|(_, hooks)| hooks.len()).sum::<usize>();
                let count = i32::try_from(count).unwrap_or(i32::MAX);
                self.hooks.add(count, count);
                let why = format!(
                    "pod {name}: its post-restore exec hooks were begun by an earlier run of this restore; how they ended is not known, and they do not run again"
                );
                self.report.error(place, &why);
                return Ok(());
            }
            Some(Noted::Ended(attempted, failed)) => {
                self.hooks.add(attempted, failed);
                if failed > 0 {
                    let why = format!(
                        "pod {name}: {failed} of its {attempted} post-restore exec hooks failed in an earlier run of this restore, and they do not run again"
                    );
                    self.report.error(place, &why);
                }
                return Ok(());
            }
        }
        self.run_groups(&pod, groups).await
    }

    /// Pods whose data is back have gone on within this time. One whose data is lost never does, whether its waiter runs or could not
    /// even be started.
    fn waits_in_vain(&self, pod: &RestoredPod) -> bool {
        let over = self.data_over.get();
        let over = over.is_some_and(|over| over.elapsed() > GOES_ON);
        if !over || pod.waits_for() != Some(&self.uid) || pod.has_left() {
            return false;
        }
        let volumes = self.begun();
        let volumes = || volumes.iter().map(AsRef::as_ref);
        let lacks = |volume: &str| over::loss(pod, volume, volumes()).is_some();
        pod.is_waiting() || pod.awaited().any(lacks)
    }

    fn live(&self, key: &Key, uid: &str) -> Option<Arc<RestoredPod>> {
        let pod = self.restored_pods.get(key);
        pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid))
    }

    async fn run_groups(
        &self,
        pod: &RestoredPod,
        mut groups: Vec<(String, Vec<Exec>)>,
    ) -> Result<(), Failure> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        let key = Key::of(pod);
        let began = Instant::now();
        let deadline = match hook::longest_wait(&groups) {
            Some(wait) => Some(began + wait),
            None => self.deadline(),
        };
        let is_late = || match deadline {
            Some(deadline) => Instant::now() >= deadline,
            None => {
                let over = self.data_over.get();
                over.is_some_and(|over| over.elapsed() >= PATIENCE)
            }
        };
        // Of this pod alone.
        let count = HookCount::default();
        let mut noted = false;
        // When the API server was asked for it: the watch does not have it.
        let mut asked: Option<Instant> = None;
        let over = loop {
            let news = self.restored_pods.next_change();
            self.token.check()?;
            if groups.is_empty() {
                break None;
            }
            if self.is_deleted() {
                break Some(Over::Gone);
            }
            let mut now = self.live(&key, &uid);
            if now.is_none() && asked.is_none_or(|asked| asked.elapsed() >= SEEN) {
                asked = Some(Instant::now());
                now = self.pod_of(&namespace, &name, &uid).await?;
                if now.is_none() {
                    break Some(Over::Gone);
                }
            }
            let phase = now.as_ref().and_then(|now| now.status.phase.as_deref());
            if let Some(phase @ ("Succeeded" | "Failed")) = phase {
                break Some(Over::Ended(phase.to_owned()));
            }
            let up = now.as_ref().and_then(|now| {
                let mut groups = groups.iter();
                groups.position(|(container, hooks)| {
                    now.is_up(container, hooks.iter().any(|hook| hook.ready))
                })
            });
            if let Some(at) = up {
                if !noted {
                    match self.note(pod, Noted::Begun).await {
                        Ok(true) => noted = true,
                        Ok(false) => break Some(Over::Gone),
                        Err(error) if is_passing(&error) => {
                            return Err(Failure::transient("NotNoted", chain(&error)));
                        }
                        Err(error) => break Some(Over::Unnoted(chain(&error))),
                    }
                }
                let (container, hooks) = groups.remove(at);
                if let Err(left) = self
                    .run_group((&namespace, &name), &container, hooks, began, &count)
                    .await
                {
                    groups.push((container, left));
                    break Some(Over::Failed);
                }
                continue;
            }
            if now.is_some_and(|now| self.waits_in_vain(&now)) {
                break Some(Over::NoData);
            }
            if is_late() {
                break Some(Over::Late);
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(TICK) => {}
            }
        };
        let why = match over {
            // Nothing is left.
            None => String::new(),
            Some(Over::Failed) => "a hook before it failed".to_owned(),
            Some(Over::Gone) => "the pod is gone".to_owned(),
            Some(Over::Ended(phase)) => format!("the pod entered phase {phase}"),
            Some(Over::NoData) => "the data of the pod was not restored".to_owned(),
            Some(Over::Late) => "its container was not up in time".to_owned(),
            Some(Over::Unnoted(why)) => {
                format!("that it begins cannot be noted on the pod: {why}")
            }
        };
        for (container, hooks) in groups {
            for hook in hooks {
                count.add(1, 1);
                let hook = &hook.name;
                let why = format!(
                    "hook {hook} in container {container} in pod {namespace}/{name} not executed: {why}"
                );
                self.report.error(Place::Namespace(&namespace), &why);
            }
        }
        let count = count.status();
        self.hooks.add(count.hooks_attempted, count.hooks_failed);
        if noted {
            let ended = Noted::Ended(count.hooks_attempted, count.hooks_failed);
            if let Err(error) = self.note(pod, ended).await {
                // Only a run that takes this restore up would have liked to know.
                tracing::warn!(pod = name, namespace, %error, "the end of its hooks is not noted");
            }
        }
        Ok(())
    }

    /// Runs the commands of one container. The error is what is left when a required one failed.
    async fn run_group(
        &self,
        (namespace, pod): (&str, &str),
        container: &str,
        hooks: Vec<Exec>,
        began: Instant,
        count: &HookCount,
    ) -> Result<(), Vec<Exec>> {
        let mut hooks = hooks.into_iter();
        while let Some(hook) = hooks.next() {
            let name = &hook.name;
            let result = if hook.wait.is_some_and(|wait| began.elapsed() > wait) {
                Err(format!(
                    "hook {name} in container {container} of pod {pod} expired before executing"
                ))
            } else {
                let command = hook.command.join(" ");
                self.report.info(&format!(
                    "running exec hook in container {container} of pod {namespace}/{pod}: {command}"
                ));
                let target = (namespace, pod);
                let result = exec(self.context, target, container, &hook.command, hook.timeout);
                result.await.map_err(|why| format!("hook {name} in container {container} of pod {pod} failed to execute, err: {why}"))
            };
            count.add(1, i32::from(result.is_err()));
            for line in result.iter().flat_map(Output::lines) {
                self.report.info(&line);
            }
            if let Err(why) = result {
                self.report.error(Place::Namespace(namespace), &why);
                if hook.required {
                    return Err(hooks.collect());
                }
            }
        }
        Ok(())
    }

    /// Writes down on a pod how far its commands are: before the first begins, and after the last. `false`: the pod is gone.
    async fn note(&self, pod: &RestoredPod, noted: Noted) -> Result<bool, kube::Error> {
        let namespace = pod.namespace().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.context.clients.call.clone(), &namespace);
        let patch = Patch::Merge(serde_json::json!({"metadata": {
            "uid": pod.metadata.uid,
            "annotations": {(annotation::RESTORE_HOOKS): noted.text(&self.uid)},
        }}));
        let (name, params) = (pod.name_any(), params());
        match patiently(|| api.patch_metadata(&name, &params, &patch)).await {
            Ok(_) => Ok(true),
            // Gone, or another of its name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn pairs(map: &Value) -> Labels {
    let pairs = map.as_object().into_iter().flatten();
    pairs
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::run::idle::Idle;

    #[test]
    fn what_was_noted_on_a_pod_is_read_again() {
        for noted in [Noted::Begun, Noted::Ended(3, 0), Noted::Ended(2, 1)] {
            assert_eq!(Noted::read(&noted.text("uid"), "uid"), Some(noted));
            assert_eq!(Noted::read(&noted.text("uid"), "other"), None);
        }
        assert_eq!(Noted::read("uid 3", "uid"), Some(Noted::Begun));
    }

    fn parsed(hooks: Value) -> Result<Vec<SpecHooks>, String> {
        let spec = serde_json::json!({"backupName": "b", "hooks": {"resources": hooks}});
        of_spec(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn hooks_of_a_specification_are_for_pods() {
        let post = serde_json::json!([
            {"exec": {"command": ["/x"], "onError": "Fail", "execTimeout": "5s", "waitTimeout": "1m", "waitForReady": true}},
            {"init": {"initContainers": [{"name": "i", "image": "j", "restartPolicy": "Always"}]}},
            {"exec": {"container": "side", "command": ["/y"]}}]);
        let hooks = parsed(serde_json::json!([
            {"name": "mine", "includedResources": ["pods"], "postHooks": post},
            {"name": "not-for-pods", "includedResources": ["services"], "postHooks": post}]));
        let hooks = hooks.unwrap();
        assert_eq!(hooks.len(), 1);
        assert_eq!(
            hooks[0].init,
            [serde_json::json!({"name": "i", "image": "j", "restartPolicy": "Always"})]
        );
        let first = Exec {
            name: "mine".to_owned(),
            container: None,
            command: vec!["/x".to_owned()],
            required: true,
            timeout: Duration::from_secs(5),
            wait: Some(Duration::from_secs(60)),
            ready: true,
        };
        let second = Exec {
            container: Some("side".to_owned()),
            command: vec!["/y".to_owned()],
            required: false,
            timeout: DEFAULT_TIMEOUT,
            wait: None,
            ready: false,
            ..first.clone()
        };
        assert_eq!(hooks[0].exec, [first, second]);
    }

    #[test]
    fn wrong_hooks_are_named() {
        let selector = serde_json::json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        let error =
            parsed(serde_json::json!([{"name": "x"}, {"name": "y", "labelSelector": selector}]));
        assert!(
            error
                .unwrap_err()
                .contains("spec.hooks.resources[1].labelSelector")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hooks_of_a_pod_that_the_watch_lacks_wait_for_it() {
        let pod = serde_json::json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "u",
                "annotations": {"post.hook.restore.velero.io/command": "/x"}},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Succeeded"}});
        let idle = Idle::new(&[("/api/v1/namespaces/n/pods/a", pod)]);
        for (uid, said) in [("u", "the pod entered phase Succeeded"), ("v", "")] {
            let run = idle.run();
            let made = (("n".to_owned(), "a".to_owned()), uid.to_owned());
            run.hooks_of(made).await.unwrap();
            let errors = run.report.results()["errors"].to_string();
            assert_eq!(run.report.counts().1, i32::from(!said.is_empty()), "{uid}");
            assert!(errors.contains(said), "{errors}");
        }
    }
}
