//! The long-running processes of a cluster. They outlive the program that started them, run in the cluster's network
//! namespace and control group, and write to `logs/<name>.log`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::Cgroups;
use crate::network;
use crate::place::Place;
use crate::site::Site;

const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Joins the control group, starts the command in the background and prints its id. The shell ends at once, so the daemon
/// is nobody's child and leaves no zombie with us.
const LAUNCH: &str = r#"log=$1 group=$2; shift 2; echo $$ > "$group"; exec 3<&0
"$@" <&3 3<&- >>"$log" 2>&1 & echo $!"#;

/// What to start.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(String, String)>,
    stdin: Stdio,
    namespaces: Option<Namespaces>,
}

/// What a daemon runs in when it does not run on the first node.
#[derive(Debug, Clone)]
pub(crate) struct Namespaces {
    pub(crate) network: PathBuf,
    pub(crate) mounts: Option<PathBuf>,
}

impl Daemon {
    pub(crate) fn new(name: impl Into<String>, program: &Path) -> Self {
        Self {
            name: name.into(),
            program: program.to_owned(),
            args: Vec::new(),
            environment: Vec::new(),
            stdin: Stdio::null(),
            namespaces: None,
        }
    }

    pub(crate) fn on(mut self, site: &Site) -> Self {
        self.name = site.daemon(&self.name);
        self.namespaces = Some(site.namespaces());
        self
    }

    pub(crate) fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn environments<'a>(
        self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let set = |daemon: Self, (name, value)| daemon.environment(name, value);
        variables.into_iter().fold(self, set)
    }

    pub(crate) fn stdin(mut self, input: OwnedFd) -> Self {
        self.stdin = Stdio::from(input);
        self
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Daemons {
    place: Place,
    cgroups: Cgroups,
}

impl Daemons {
    pub(crate) fn of(place: &Place, cgroups: &Cgroups) -> Self {
        Self {
            place: place.clone(),
            cgroups: cgroups.clone(),
        }
    }

    pub(crate) fn start(&self, daemon: Daemon) -> Result<()> {
        let name = &daemon.name;
        let log = self.log(name);
        std::fs::create_dir_all(self.place.path("logs"))?;
        let namespaces = daemon.namespaces.unwrap_or_else(|| Namespaces {
            network: self.place.netns(),
            mounts: None,
        });
        let mut command = network::inside_both(
            &namespaces.network,
            namespaces.mounts.as_deref(),
            ["sh", "-c", LAUNCH, "launch"],
        );
        command
            .arg(&log)
            .arg(self.cgroups.host_procs())
            .arg(&daemon.program)
            .args(&daemon.args);
        command.envs(daemon.environment.iter().map(|(name, value)| (name, value)));
        // Out of the terminal's process group: Ctrl-C is for the program in front.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let started = command.stdin(daemon.stdin).stderr(Stdio::piped()).output();
        let started = started.with_context(|| format!("start {name}"))?;
        let said = String::from_utf8_lossy(&started.stdout);
        let Ok(pid) = said.trim().parse::<i32>() else {
            bail!(
                "start {name}: {}",
                String::from_utf8_lossy(&started.stderr).trim()
            );
        };
        self.place
            .write(&format!("run/{name}.pid"), pid.to_string())?;
        Ok(())
    }

    /// The log of a daemon.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.place.path(&format!("logs/{name}.log"))
    }

    /// The process of a daemon, when it runs.
    pub(crate) fn pid(&self, name: &str) -> Option<i32> {
        let file = self.place.path(&format!("run/{name}.pid"));
        let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
        // The id alone may be another process's by now.
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let ours = groups.contains(&format!("/{}/host", self.place.id));
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let zombie = status
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim().starts_with('Z'));
        (ours && !zombie).then_some(pid)
    }

    /// Ends a daemon and waits for its end.
    pub(crate) fn stop(&self, name: &str, signal: Signal) -> Result<()> {
        let deadline = Instant::now() + STOP_DEADLINE;
        let Some(pid) = self.pid(name).and_then(Pid::from_raw) else {
            return Ok(());
        };
        let _ = kill_process(pid, signal);
        while self.pid(name).is_some() {
            if Instant::now() > deadline {
                let _ = kill_process(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Fails with the last words of the first of these daemons that does not run.
    pub(crate) fn ensure_running(&self, names: &[&str]) -> Result<()> {
        match names.iter().find(|name| self.pid(name).is_none()) {
            Some(name) => bail!("{name} ended:\n{}", self.last_words(name)),
            None => Ok(()),
        }
    }

    /// The end of a daemon's log, for error messages.
    pub(crate) fn last_words(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}
