//! Writes, as the API server's audit log tells them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use jackline_test_cluster::Cluster;
use jiff::Timestamp;
use serde_json::Value;

/// A request that changed something.
#[derive(Debug, Clone)]
pub struct Write {
    pub at: Timestamp,
    pub verb: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    pub user: String,
    pub agent: String,
}

impl std::fmt::Display for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            at,
            verb,
            resource,
            subresource,
            name,
            user,
            agent,
        } = self;
        write!(
            f,
            "{at} {verb} {resource}/{subresource} {name} by {user} ({agent})"
        )
    }
}

impl Write {
    /// An apply on a pod: the only thing that patches pods themselves with the controller's field manager.
    fn is_annotation(&self) -> bool {
        self.resource == "pods" && self.verb == "patch" && self.subresource.is_empty()
    }

    /// By the API server itself.
    pub fn is_servers_own(&self) -> bool {
        self.user == "system:apiserver"
    }
}

/// The log, read on from where it was read before.
#[derive(Debug, Default)]
pub struct Audit {
    offset: u64,
    /// Writes that were not refused.
    pub writes: Vec<Write>,
}

impl Audit {
    /// Takes in what was written to the log since.
    pub fn update(&mut self, cluster: &Cluster) -> Result<()> {
        let mut file = File::open(cluster.log("audit.jsonl")).context("open the audit log")?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        // The last line may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        let lines = text.get(..whole).unwrap_or_default().lines();
        let events = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        self.writes.extend(events.filter_map(|event| write(&event)));
        Ok(())
    }

    pub fn annotations(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.is_annotation())
    }
}

fn write(event: &Value) -> Option<Write> {
    let text = |pointer: &str| {
        event
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let verb = text("/verb");
    let changes =
        ["create", "update", "patch", "delete", "deletecollection"].contains(&verb.as_str());
    let code = event
        .pointer("/responseStatus/code")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    if !changes || text("/stage") != "ResponseComplete" || code >= 400 {
        return None;
    }
    Some(Write {
        at: text("/stageTimestamp").parse().ok()?,
        verb,
        resource: text("/objectRef/resource"),
        subresource: text("/objectRef/subresource"),
        name: text("/objectRef/name"),
        user: text("/user/username"),
        agent: text("/userAgent"),
    })
}
