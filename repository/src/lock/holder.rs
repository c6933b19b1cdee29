//! Who holds a lock, and whether they are dead.

use std::fmt;
use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Locks older than this are dead by restic's rule: a living restic confirms every five minutes.
pub const FOREIGN_STALE: Duration = Duration::from_secs(30 * 60);

/// A process instance that no other process ever equals, by where it runs. Only [`LockJudge`]s know what that means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// UID of the cluster's `kube-system` namespace. A lock of another cluster is foreign.
    pub cluster: String,
    /// Node name.
    pub node: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Container id, as the kubelet reports it.
    #[serde(default)]
    pub container: String,
    /// A random id made at process start.
    pub random: String,
}

/// Who holds a lock: restic's own fields, and the instance that only we write and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// Host name. In a pod `<pod>.<namespace>@<node>`: restic probes the process of a lock with its own host name.
    pub hostname: String,
    /// User name; in a pod whatever helps a reader.
    pub username: String,
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The process instance, where there is one.
    pub instance: Option<Instance>,
}

impl LockHolder {
    /// This process on this host, without an instance, as restic would name it.
    pub fn this_process() -> Self {
        let uname = rustix::system::uname();
        let uid = rustix::process::getuid().as_raw();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            username: crate::names::Names::default().user(uid),
            pid: std::process::id(),
            uid,
            gid: rustix::process::getgid().as_raw(),
            instance: None,
        }
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.hostname)?;
        match &self.instance {
            Some(instance) => write!(f, " (pod {} on node {})", instance.pod_uid, instance.node),
            None => Ok(()),
        }
    }
}

/// Decides whether the holder of somebody else's lock is dead, so that the lock may be removed.
#[async_trait]
pub trait LockJudge: Debug + Send + Sync {
    /// `age`: time since the lock was last confirmed. Must err on the side of `false`: removing the lock of a living
    /// process can lose data. Locks without an instance of our own cluster are to be judged by [`rest_rule`] alone.
    async fn is_dead(&self, holder: &LockHolder, age: Duration) -> bool;
}

/// restic's rule alone: older than 30 minutes, or on this host and the process is gone.
#[derive(Debug, Clone, Copy, Default)]
pub struct RestRule;

#[async_trait]
impl LockJudge for RestRule {
    async fn is_dead(&self, holder: &LockHolder, age: Duration) -> bool {
        rest_rule(holder, age)
    }
}

/// restic's rule: older than 30 minutes, or on this host and the process is gone. A holder with an instance lives in
/// a container, where host names and process ids prove nothing across process namespaces, so only age counts for it,
/// unless it is this very host name.
pub fn rest_rule(holder: &LockHolder, age: Duration) -> bool {
    if age > FOREIGN_STALE {
        return true;
    }
    let this = rustix::system::uname();
    if this.nodename().to_string_lossy() != holder.hostname {
        return false;
    }
    !process_exists(holder.pid)
}

fn process_exists(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return false;
    };
    match rustix::process::test_kill_process(pid) {
        Err(rustix::io::Errno::SRCH) => false,
        Ok(()) | Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_dead() {
        let this = LockHolder::this_process();
        assert!(!rest_rule(&this, Duration::from_secs(60)));
        assert!(rest_rule(&this, Duration::from_secs(31 * 60)));

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = LockHolder {
            pid: child.id(),
            ..this.clone()
        };
        child.wait().unwrap();
        assert!(rest_rule(&gone, Duration::ZERO));

        let elsewhere = LockHolder {
            hostname: "elsewhere".into(),
            ..gone
        };
        assert!(!rest_rule(&elsewhere, Duration::from_secs(60)));
        assert!(!rest_rule(
            &LockHolder {
                pid: 0,
                hostname: "x".into(),
                ..this
            },
            Duration::ZERO
        ));
    }
}
