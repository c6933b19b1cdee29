//! Which backups may go. Recovery points are counted per volume, not backups: a point is a volume's snapshot that holds data. A backup
//! that holds one kept point of any volume stays. So any number of backups of an empty cluster displaces nothing that is needed.

mod keep;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::spec::Retention;

/// How a backup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Still at work (or waiting for it): never deleted, and its snapshots are no points yet.
    Unfinished,
    /// Completed or PartiallyFailed: they age alike.
    Usable,
    /// Failed or FailedValidation.
    Failed,
    /// A deletion has been asked for.
    Deleting,
}

/// A backup made by the policy, as recorded by the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    pub name: String,
    /// When it started.
    pub time: Timestamp,
    pub outcome: Outcome,
    /// Made by this cluster (same UID of kube-system). Others are never ours to delete.
    pub ours: bool,
    /// A restore reads it.
    pub in_use: bool,
    /// Its volume records are as many as it says it made; otherwise what it holds is not known, and it stays.
    pub complete: bool,
    /// Volumes with a snapshot that holds data.
    pub points: BTreeSet<String>,
}

/// Whether a volume that has points still exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    Exists,
    /// Not found, since when it was first missed; `None` = first missed now.
    Gone(Option<Timestamp>),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Backups to delete now, oldest first. Empty while the plan is held.
    pub delete: Vec<String>,
    /// What would be deleted, were it not so much at once.
    pub held: Option<Held>,
    /// Volumes missed for the first time: their absence is to be recorded.
    pub newly_gone: Vec<String>,
    /// When time alone changes this plan.
    pub next: Option<Timestamp>,
}

/// A plan that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub backups: Vec<String>,
    /// The most that goes without being confirmed.
    pub limit: usize,
}

/// A confirmation counts for this long.
pub const CONFIRMED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Computes the plan of one policy. `existence` answers for every volume named in `points`; `confirmed` is the time a person wrote to
/// confirm a held plan; `zone` decides where days and weeks begin.
pub fn plan(
    retention: &Retention,
    zone: &TimeZone,
    backups: &[BackupFacts],
    existence: impl Fn(&str) -> Existence,
    confirmed: Option<Timestamp>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut needed: BTreeSet<&str> = BTreeSet::new();

    for (volume, points) in points_by_volume(backups) {
        let gone_since = match existence(volume) {
            Existence::Exists => None,
            Existence::Gone(since) => {
                if since.is_none() {
                    plan.newly_gone.push(volume.to_owned());
                }
                Some(since.unwrap_or(now))
            }
        };
        if let (Some(since), Some(kept_for)) = (gone_since, retention.vanished_volumes) {
            match since.checked_add(kept_for) {
                Ok(until) if until <= now => continue,
                Ok(until) => plan.next = earliest(plan.next, until),
                Err(_) => {}
            }
        }
        needed.extend(keep::kept(retention, zone, &points, retention.minimum_good));
    }
    // Backups that hold no points age by the same rules, among themselves; failed ones apart, so that they displace nothing.
    let series = |outcome| {
        let of_outcome = |b: &&BackupFacts| {
            b.ours && b.outcome == outcome && (outcome == Outcome::Failed || b.points.is_empty())
        };
        newest_first(backups.iter().filter(of_outcome))
    };
    needed.extend(keep::kept(
        retention,
        zone,
        &series(Outcome::Usable),
        retention.minimum_good,
    ));
    needed.extend(keep::kept(retention, zone, &series(Outcome::Failed), 0));

    let mut going: Vec<&BackupFacts> = backups
        .iter()
        .filter(|backup| backup.ours && !backup.in_use && backup.complete)
        .filter(|backup| matches!(backup.outcome, Outcome::Usable | Outcome::Failed))
        .filter(|backup| !needed.contains(backup.name.as_str()))
        .collect();
    going.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
    let names: Vec<String> = going
        .into_iter()
        .map(|backup| backup.name.clone())
        .collect();

    // Deletions on their way count, so that a mass deletion does not slip through in slices.
    let on_their_way = backups
        .iter()
        .filter(|b| b.ours && b.outcome == Outcome::Deleting)
        .count();
    let limit = most_at_once(backups.iter().filter(|backup| backup.ours).count());
    let is_confirmed = confirmed.is_some_and(|at| {
        at <= now && at.checked_add(CONFIRMED_FOR).is_ok_and(|until| now < until)
    });
    if !names.is_empty() && names.len() + on_their_way > limit && !is_confirmed {
        plan.held = Some(Held {
            backups: names,
            limit,
        });
    } else {
        plan.delete = names;
    }
    plan
}

/// What goes with a policy that is deleted together with its backups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Farewell {
    /// Backups to delete now, oldest first.
    pub delete: Vec<String>,
    /// Backups that may go once they have ended or are no longer read.
    pub later: Vec<String>,
}

/// Everything goes but the newest `minimum_good` points of each volume that exists. Asked for by name, so nothing has to confirm it.
pub fn farewell(
    minimum_good: u32,
    backups: &[BackupFacts],
    exists: impl Fn(&str) -> bool,
) -> Farewell {
    let floor = usize::try_from(minimum_good).unwrap_or(usize::MAX);
    let needed: BTreeSet<&str> = points_by_volume(backups)
        .into_iter()
        .filter(|(volume, _)| exists(volume))
        .flat_map(|(_, points)| points.into_iter().take(floor))
        .map(|(_, name)| name)
        .collect();
    let mut going: Vec<&BackupFacts> = backups
        .iter()
        .filter(|b| b.ours && b.complete && b.outcome != Outcome::Deleting)
        .filter(|b| !needed.contains(b.name.as_str()))
        .collect();
    going.sort_by(|a, b| (a.time, &a.name).cmp(&(b.time, &b.name)));
    let (later, now): (Vec<_>, Vec<_>) = going
        .into_iter()
        .partition(|b| b.in_use || b.outcome == Outcome::Unfinished);
    let names = |of: Vec<&BackupFacts>| of.into_iter().map(|b| b.name.clone()).collect();
    Farewell {
        delete: names(now),
        later: names(later),
    }
}

/// max(10, 20 %) of the policy's backups.
fn most_at_once(total: usize) -> usize {
    (total / 5).max(10)
}

fn earliest(a: Option<Timestamp>, b: Timestamp) -> Option<Timestamp> {
    Some(a.map_or(b, |a| a.min(b)))
}

/// A moment that can be kept, and the backup that holds it.
type Point<'a> = (Timestamp, &'a str);

/// Points of usable backups, newest first. Foreign ones and those on their way out do not count: they may be gone any time.
fn points_by_volume(backups: &[BackupFacts]) -> BTreeMap<&str, Vec<Point<'_>>> {
    let mut volumes: BTreeMap<&str, Vec<&BackupFacts>> = BTreeMap::new();
    for backup in backups
        .iter()
        .filter(|b| b.ours && matches!(b.outcome, Outcome::Usable | Outcome::Failed))
    {
        for volume in &backup.points {
            volumes.entry(volume).or_default().push(backup);
        }
    }
    volumes
        .into_iter()
        .map(|(volume, backups)| (volume, newest_first(backups)))
        .collect()
}

fn newest_first<'a>(backups: impl IntoIterator<Item = &'a BackupFacts>) -> Vec<Point<'a>> {
    let mut points: Vec<Point<'a>> = backups
        .into_iter()
        .map(|b| (b.time, b.name.as_str()))
        .collect();
    points.sort_unstable_by(|a, b| b.cmp(a));
    points
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
