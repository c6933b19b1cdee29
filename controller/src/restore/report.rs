//! What a restore did, for its files in the bucket: log, warnings and errors, list of objects (velero-compat §3.3, §3.5, §7.7).

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

/// Where a message belongs.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The restore itself.
    Velero,
    /// Objects outside of namespaces.
    Cluster,
    /// A namespace of the cluster.
    Namespace(&'a str),
}

impl<'a> From<Option<&'a str>> for Place<'a> {
    fn from(namespace: Option<&'a str>) -> Self {
        namespace.map_or(Self::Cluster, Self::Namespace)
    }
}

/// What became of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was made.
    Created,
    /// It was there and was changed.
    Updated,
    /// It was there, or is not restored.
    Skipped,
    /// It could not be made.
    Failed,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        })
    }
}

/// Messages by place; the JSON shape is Velero's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Messages {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    velero: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cluster: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    namespaces: BTreeMap<String, Vec<String>>,
}

impl Messages {
    fn add(&mut self, place: Place<'_>, message: &str) {
        let list = match place {
            Place::Velero => &mut self.velero,
            Place::Cluster => &mut self.cluster,
            Place::Namespace(name) => self.namespaces.entry(name.to_owned()).or_default(),
        };
        list.push(message.to_owned());
    }

    fn len(&self) -> usize {
        self.velero.len()
            + self.cluster.len()
            + self.namespaces.values().map(Vec::len).sum::<usize>()
    }
}

#[derive(Debug, Default)]
struct State {
    log: String,
    warnings: Messages,
    errors: Messages,
    /// `v1/Pod` → name → outcome.
    objects: BTreeMap<String, BTreeMap<String, Done>>,
    items: i32,
}

/// Collects what one restore does. Shared by its tasks.
#[derive(Debug)]
pub struct Report {
    restore: String,
    state: Mutex<State>,
}

impl Report {
    /// An empty report of the restore `namespace/name`.
    pub fn new(restore: String) -> Self {
        Self {
            restore,
            state: Mutex::default(),
        }
    }

    /// A line of the log.
    pub fn info(&self, message: &str) {
        self.log("info", message);
    }

    /// A warning: something is not as in the backup, but nobody asked for more.
    pub fn warning(&self, place: Place<'_>, message: &str) {
        self.log("warning", message);
        self.state.lock().warnings.add(place, message);
    }

    /// An error: something that was asked for is not there.
    pub fn error(&self, place: Place<'_>, message: &str) {
        self.log("error", message);
        self.state.lock().errors.add(place, message);
    }

    /// What became of an object; `kind` is `v1/Pod` or `apps/v1/Deployment`.
    pub fn object(&self, kind: &str, namespace: Option<&str>, name: &str, done: Done) {
        let name = namespace.map_or_else(
            || name.to_owned(),
            |namespace| format!("{namespace}/{name}"),
        );
        let mut state = self.state.lock();
        state
            .objects
            .entry(kind.to_owned())
            .or_default()
            .insert(name, done);
    }

    /// One more object has been looked at.
    pub fn item(&self) {
        self.state.lock().items += 1;
    }

    /// How many objects have been looked at.
    pub fn items(&self) -> i32 {
        self.state.lock().items
    }

    /// (warnings, errors)
    pub fn counts(&self) -> (i32, i32) {
        let state = self.state.lock();
        let count = |messages: &Messages| i32::try_from(messages.len()).unwrap_or(i32::MAX);
        (count(&state.warnings), count(&state.errors))
    }

    /// The log, in logrus' text form as Velero writes it.
    pub fn log_text(&self) -> String {
        self.state.lock().log.clone()
    }

    /// `{"warnings": …, "errors": …}`
    pub fn results(&self) -> serde_json::Value {
        let state = self.state.lock();
        serde_json::json!({"warnings": state.warnings, "errors": state.errors})
    }

    /// Kind → `["namespace/name(created)", …]`
    pub fn resource_list(&self) -> BTreeMap<String, Vec<String>> {
        let state = self.state.lock();
        let list = |objects: &BTreeMap<String, Done>| {
            objects
                .iter()
                .map(|(name, done)| format!("{name}({done})"))
                .collect()
        };
        state
            .objects
            .iter()
            .map(|(kind, objects)| (kind.clone(), list(objects)))
            .collect()
    }

    fn log(&self, level: &str, message: &str) {
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        // Writing to a string does not fail.
        let _ = writeln!(
            self.state.lock().log,
            "time=\"{now}\" level={level} msg={message:?} restore={}",
            self.restore
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_have_veleros_shape() {
        let report = Report::new("velero/r".to_owned());
        report.info("begin");
        report.warning(Place::Namespace("shop"), "could not restore");
        report.error(Place::Cluster, "no");
        report.error(Place::Velero, "never");
        report.object("v1/Pod", Some("shop"), "db-0", Done::Created);
        report.object("v1/PersistentVolume", None, "pv", Done::Skipped);
        assert_eq!(report.counts(), (1, 2));
        assert_eq!(
            report.results(),
            serde_json::json!({"warnings": {"namespaces": {"shop": ["could not restore"]}},
                "errors": {"velero": ["never"], "cluster": ["no"]}})
        );
        assert_eq!(
            serde_json::to_value(report.resource_list()).unwrap(),
            serde_json::json!({"v1/Pod": ["shop/db-0(created)"], "v1/PersistentVolume": ["pv(skipped)"]})
        );
        let log = report.log_text();
        assert!(
            log.contains("level=warning msg=\"could not restore\" restore=velero/r"),
            "{log}"
        );
        assert_eq!(log.lines().count(), 4);
    }
}
