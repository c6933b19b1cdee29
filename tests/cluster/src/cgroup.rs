//! The control groups of a cluster: `/<id>/host` holds the daemons, `/<id>/pods` is the kubelet's root, `/<id>/pods-<node>`
//! another node's. Every process the
//! cluster ever starts is in one of them, so they also tell what has to end when it goes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::mounts;

const KILL_DEADLINE: Duration = Duration::from_secs(20);
const REAP_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    id: String,
    /// Mount points of the hierarchies that resources are managed in: all of version 1, or the one of version 2.
    managed: Vec<PathBuf>,
    /// Mount points of all hierarchies.
    all: Vec<PathBuf>,
    version: u8,
}

impl Cgroups {
    pub(crate) fn of(id: &str) -> Result<Self> {
        let mounted = mounts::all()?;
        let points = |kind: &str| -> Vec<PathBuf> {
            let found = mounted.iter().filter(|m| m.kind == kind);
            found.map(|m| m.point.clone()).collect()
        };
        let (v1, v2) = (points("cgroup"), points("cgroup2"));
        let all: Vec<_> = v1.iter().chain(&v2).cloned().collect();
        let (managed, version) = if v1.is_empty() { (v2, 2) } else { (v1, 1) };
        if managed.is_empty() {
            bail!("no control groups are mounted (/sys/fs/cgroup): containers cannot run here");
        }
        Ok(Self {
            id: id.to_owned(),
            managed,
            all,
            version,
        })
    }

    /// The `cgroupRoot` of a kubelet.
    pub(crate) fn pods(&self, group: &str) -> String {
        format!("/{}/{group}", self.id)
    }

    /// The file that a process writes its id into to become one of the cluster's.
    pub(crate) fn host_procs(&self) -> PathBuf {
        self.tracking().join(&self.id).join("host/cgroup.procs")
    }

    /// The hierarchy that processes are counted in.
    fn tracking(&self) -> &Path {
        let pids = self.managed.iter().find(|point| point.ends_with("pids"));
        pids.unwrap_or(&self.managed[0])
    }

    pub(crate) fn create(&self, pods: &[String]) -> Result<()> {
        for hierarchy in &self.managed {
            let root = hierarchy.join(&self.id);
            let pods = pods.iter().map(|group| root.join(group));
            for group in [root.clone(), root.join("host")].into_iter().chain(pods) {
                make(&group)?;
                if self.version == 2 && !group.ends_with("host") {
                    delegate(&group)?;
                }
            }
        }
        Ok(())
    }

    /// The ids of all processes of the cluster.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.processes_in("")
    }

    /// Those below one of its groups.
    fn processes_in(&self, group: &str) -> Vec<i32> {
        let mut found = Vec::new();
        walk(&self.tracking().join(&self.id).join(group), &mut |group| {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
        found
    }

    /// Kills every process of the cluster and waits until none is left.
    pub(crate) fn kill_all(&self) -> Result<()> {
        self.kill("")
    }

    /// As [`Self::kill_all`], below one of the groups.
    pub(crate) fn kill(&self, group: &str) -> Result<()> {
        let deadline = Instant::now() + KILL_DEADLINE;
        let mut killed = BTreeSet::new();
        loop {
            let left = self.processes_in(group);
            if left.is_empty() {
                break;
            }
            killed.extend(left.iter().copied());
            if Instant::now() > deadline {
                bail!("processes do not end although killed: {left:?}");
            }
            for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                // One that ended meanwhile is what we want.
                let _ = kill_process(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(10));
        }
        // Their parent, the machine's first process, has yet to take note of their end. One that never does is no reason
        // to fail.
        let deadline = Instant::now() + REAP_DEADLINE;
        let exists = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
        while killed.iter().any(exists) && Instant::now() < deadline {
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Removes the control groups, which must hold no process any more.
    pub(crate) fn remove(&self) -> Result<()> {
        for hierarchy in &self.all {
            let mut groups = Vec::new();
            walk(&hierarchy.join(&self.id), &mut |group| {
                groups.push(group.to_owned())
            });
            for group in groups.iter().rev() {
                remove_group(group)?;
            }
        }
        Ok(())
    }

    /// Every control group of the cluster that exists.
    pub(crate) fn existing(&self) -> Vec<PathBuf> {
        let roots = self.all.iter().map(|hierarchy| hierarchy.join(&self.id));
        roots.filter(|root| root.exists()).collect()
    }
}

fn make(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("create {}", group.display()))?;
    // A fresh cpuset of version 1 is empty, and no process may enter it.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = group.join(file);
        let parents = group.parent().map(|parent| parent.join(file));
        let Some(parents) = parents.filter(|parents| own.exists() && parents.exists()) else {
            continue;
        };
        if fs::read_to_string(&own)?.trim().is_empty() {
            let value = fs::read_to_string(&parents)?;
            fs::write(&own, value.trim()).with_context(|| format!("write {}", own.display()))?;
        }
    }
    Ok(())
}

/// Version 2: hands the controllers that a group has on to its children.
fn delegate(group: &Path) -> Result<()> {
    let parent = group.parent().context("a control group has a parent")?;
    for level in [parent, group] {
        let controllers = fs::read_to_string(level.join("cgroup.controllers"))?;
        for controller in controllers.split_whitespace() {
            // Not every controller can be handed on everywhere; the kubelet checks those it needs.
            let _ = fs::write(
                level.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
        }
    }
    Ok(())
}

/// Visits a group and those below it, parents first.
fn walk(group: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(group) else {
        return;
    };
    visit(group);
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

fn remove_group(group: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_DEADLINE;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // The kernel lets go of a group a moment after its last process.
            Err(error)
                if error.kind() == std::io::ErrorKind::ResourceBusy
                    && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).with_context(|| format!("remove {}", group.display())),
        }
    }
}
