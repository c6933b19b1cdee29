//! A lock file: restic's fields, and one of our own beside them that restic ignores.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::holder::{Instance, LockHolder};
use crate::error::{Error, Result};
use crate::tree::time;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredLock {
    #[serde(with = "time")]
    pub(crate) time: Timestamp,
    pub(crate) exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: i64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<Instance>,
}

impl StoredLock {
    pub(crate) fn new(holder: &LockHolder, exclusive: bool) -> Self {
        Self {
            time: Timestamp::now(),
            exclusive,
            hostname: holder.hostname.clone(),
            username: holder.username.clone(),
            pid: i64::from(holder.pid),
            uid: holder.uid,
            gid: holder.gid,
            instance: holder.instance.clone(),
        }
    }

    pub(crate) fn holder(&self) -> LockHolder {
        LockHolder {
            hostname: self.hostname.clone(),
            username: self.username.clone(),
            pid: u32::try_from(self.pid).unwrap_or_default(),
            uid: self.uid,
            gid: self.gid,
            instance: self.instance.clone(),
        }
    }

    /// `name` is for the error.
    pub(crate) fn parse(name: &str, json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|error| Error::corrupt(name, error))
    }

    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_restics_and_its_own() {
        let restic = br#"{"time":"2026-11-23T01:02:03.4+01:00","exclusive":true,"hostname":"h","username":"root","pid":7}"#;
        let lock = StoredLock::parse("locks/x", restic).unwrap();
        assert!(lock.exclusive && lock.instance.is_none());
        assert_eq!(lock.holder().pid, 7);

        let holder = LockHolder {
            instance: Some(Instance {
                cluster: "c".into(),
                node: "n".into(),
                pod_uid: "p".into(),
                container: String::new(),
                random: "r".into(),
            }),
            ..LockHolder::this_process()
        };
        let lock = StoredLock::new(&holder, false);
        let back = StoredLock::parse("locks/x", &lock.to_json().unwrap()).unwrap();
        assert_eq!(back.holder(), holder);
        assert!(StoredLock::parse("locks/x", b"{}").is_err());
    }
}
