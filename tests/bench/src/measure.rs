//! One run of a program: wall time, CPU time, peak memory.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::Serialize;

/// What a run cost.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cost {
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_bytes: u64,
}

/// The child that runs now, so that it can be ended when the user stops the measurement.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children(Arc<Mutex<Running>>);

#[derive(Debug, Default)]
struct Running {
    pid: Option<Pid>,
    ended: bool,
}

impl Children {
    /// Ends the running child; no other is started.
    pub(crate) fn end(&self) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.ended = true;
        if let Some(pid) = running.pid.take() {
            let _ = kill_process(pid, Signal::KILL);
            // A killed process still writes until it is gone.
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
        }
    }

    /// Runs the command to its end. A failure is an error with what it said.
    pub(crate) fn run(&self, command: &mut Command, log: &Path) -> Result<Cost> {
        let output = std::fs::File::create(log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let started = Instant::now();
        let (mut child, pid) = {
            let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if running.ended {
                bail!("stopped");
            }
            let child = command
                .spawn()
                .with_context(|| format!("start {command:?}"))?;
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            running.pid = pid;
            (child, pid.context("the process has no id")?)
        };
        let mut cost = Cost::default();
        loop {
            // The peak only grows, so the last look before the end is the peak.
            cost.peak_bytes = peak(pid).unwrap_or(cost.peak_bytes);
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            if waitid(WaitId::Pid(pid), look)?.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        cost.wall_seconds = started.elapsed().as_secs_f64();
        // Not reaped yet: the kernel still knows what it used.
        cost.cpu_seconds = cpu(pid).context("CPU time of the process")?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pid = None;
        let status = child.wait()?;
        if !status.success() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{command:?}: {status}\n{}", said.trim());
        }
        Ok(cost)
    }
}

fn peak(pid: Pid) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// User and system time of all threads, in the kernel's ticks of 10 ms.
fn cpu(pid: Pid) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The middle one of the values; of an even number the mean of the two in the middle.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_ignores_the_outlier() {
        assert_eq!(median([1.0, 100.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 2.0]), 3.0);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn a_run_is_measured_and_a_failure_says_why() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let children = Children::default();
        let busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 0.05";
        let cost = children
            .run(Command::new("sh").args(["-c", busy]), log.path())
            .unwrap();
        assert!(
            cost.wall_seconds >= 0.05 && cost.cpu_seconds > 0.0,
            "{cost:?}"
        );
        assert!(cost.peak_bytes > 100_000, "{cost:?}");
        let fail = children.run(
            Command::new("sh").args(["-c", "echo no; exit 3"]),
            log.path(),
        );
        assert!(format!("{:#}", fail.unwrap_err()).ends_with("no"));
        children.end();
        children
            .run(&mut Command::new("true"), log.path())
            .unwrap_err();
    }
}
