//! BackupStorageLocation: can it be used, and if not, why.
//!
//! Input: the location, the Secrets it names, the bucket. Output: phase and message, the repository password where none was ever
//! needed, one default. Invariants: an unchanged verdict is written at most once an hour; a location that cannot be used is tried
//! again within a minute, and at once when it or one of its Secrets changes.

mod open;
mod password;
mod presence;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use jackline_crds::{
    names::{FIELD_MANAGER, REPOSITORY_SECRET},
    velero::{
        BackupStorageLocation, BackupStorageLocationStatus, LocationPhase, RepositoryPhase,
        UploaderType,
    },
};
use jackline_runtime::{
    Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, Queue, RunOptions, WatchEvent,
    WatchSpec,
    status::{Guard, StatusAt, write_status},
};
use jackline_storage::ObjectStore;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use parking_lot::Mutex;
use prometheus::{GaugeVec, Opts};
use tokio::time::Instant;

pub use open::{LocationError, is_new, of_backup, open, read_only, secrets, settings, usable};
pub use password::{PasswordState, read as read_password, repositories};

use crate::context::Context;
use password::Fit;

/// How often a location is looked at when it does not say.
const FREQUENCY: Duration = Duration::from_secs(60);
/// How soon one that cannot be used is tried again.
const RETRY: Duration = Duration::from_secs(15);
/// How old `lastValidationTime` of an unchanged verdict may become.
const HEARTBEAT: Duration = Duration::from_secs(3600);
/// Longest time that a look at the bucket may take.
const LOOK: Duration = Duration::from_secs(45);
/// Longest time that another location may take to say whether it holds repositories.
const OTHER: Duration = Duration::from_secs(10);
/// How old a location is that cannot be read and still keeps a password from being made: its Secret may be about to come.
const YOUNG: Duration = Duration::from_secs(600);
/// How long it is believed that the password opens no repository: who adds a key to them changes nothing in the cluster.
const BELIEVED: Duration = Duration::from_secs(120);

/// What this process last saw of each location.
#[derive(Debug, Default)]
struct Seen {
    looks: Mutex<HashMap<String, (u64, Instant)>>,
    /// When this cluster's note was left in it, and for which spec: another one may mean another bucket.
    notes: Mutex<HashMap<String, (u64, Instant)>>,
    /// Where the password was tried, for which spec and with which result.
    tries: Mutex<HashMap<String, (u64, Instant, Fit)>>,
    /// How often something was forgotten, by location.
    changes: Mutex<HashMap<String, u64>>,
}

impl Seen {
    /// How long until the next look is due; `None`: now.
    fn wait(&self, name: &str, spec: u64, every: Option<Duration>) -> Option<Duration> {
        let looks = self.looks.lock();
        let (known, at) = looks.get(name)?;
        if *known != spec {
            return None;
        }
        match every {
            // Looking periodically is switched off.
            None => Some(HEARTBEAT),
            Some(every) => every
                .checked_sub(at.elapsed())
                .filter(|left| !left.is_zero()),
        }
    }

    /// What is known of the location counts no more, nor what a look that is under way finds.
    fn forget(&self, name: &str) {
        *self.changes.lock().entry(name.to_owned()).or_default() += 1;
        self.clear(name);
    }

    fn clear(&self, name: &str) {
        self.looks.lock().remove(name);
        self.notes.lock().remove(name);
        self.tries.lock().remove(name);
    }

    fn changes(&self, name: &str) -> u64 {
        self.changes.lock().get(name).copied().unwrap_or_default()
    }

    /// Notes that a location was looked at, unless something was forgotten since there were so many `changes`.
    fn looked(&self, name: &str, spec: u64, changes: u64) {
        let now = (spec, Instant::now());
        self.looks.lock().insert(name.to_owned(), now);
        if self.changes(name) != changes {
            self.clear(name);
        }
    }

    /// Whether the password is the one for the location, as far as a try has shown that still counts.
    fn fit(&self, name: &str, spec: u64) -> Option<Fit> {
        let tries = self.tries.lock();
        let (of, at, fit) = tries.get(name)?;
        let counts = match fit {
            Fit::Opens => true,
            Fit::Foreign(_) => at.elapsed() < BELIEVED,
            Fit::Unknown => false,
        };
        (*of == spec && counts).then(|| fit.clone())
    }
}

/// Starts the controller.
pub fn register(context: &Arc<Context>, kit: &Kit, lease: &Lease) {
    let queue = Queue::new("locations");
    let gauge = status_gauge(context);
    let seen = Arc::new(Seen::default());
    context
        .stores
        .locations
        .enqueue(&queue, |change| vec![change.key.clone()]);
    {
        // Secrets are not kept in memory: a change only says which locations to look at again.
        let (locations, queue, seen) = (
            context.stores.locations.clone(),
            queue.clone(),
            seen.clone(),
        );
        let spec = WatchSpec::new("secrets").namespace(&context.namespace);
        kit.watch_raw::<Secret>(spec, move |event| {
            let (WatchEvent::Apply(secret) | WatchEvent::Delete(secret)) = event else {
                return;
            };
            let name = secret.name_any();
            for location in locations.list() {
                if name == REPOSITORY_SECRET || secrets(&location).any(|used| used == name) {
                    seen.forget(&location.name_any());
                    queue.add(Key::of(&*location));
                }
            }
        });
    }
    let context = context.clone();
    kit.run_leading(
        &queue,
        RunOptions::new().concurrency(4),
        lease,
        move |key, token| {
            let (context, seen, gauge) = (context.clone(), seen.clone(), gauge.clone());
            async move {
                context.alone().await?;
                let result = pass(&context, &seen, &key, &token).await;
                show(&context, &gauge, &key);
                result
            }
        },
    );
}

/// Velero's gauge: 1 while a location can be used.
fn status_gauge(context: &Context) -> Option<GaugeVec> {
    let name = "velero_backup_location_status_gauge";
    let options = Opts::new(
        name,
        "1 while the backup storage location can be used, else 0.",
    );
    let gauge = GaugeVec::new(options, &["backup_location_name"]).ok()?;
    jackline_runtime::metrics::add(context.metrics.registry(), gauge)
        .inspect_err(|error| tracing::error!(%error, "metric is not registered"))
        .ok()
}

fn show(context: &Context, gauge: &Option<GaugeVec>, key: &Key) {
    let Some(gauge) = gauge else { return };
    match context.stores.locations.get(key) {
        None => {
            // An error means that it was never shown.
            let _ = gauge.remove_label_values(&[&key.name]);
        }
        Some(location) => {
            let phase = location.status.as_ref().and_then(|status| status.phase);
            let up = phase == Some(LocationPhase::Available);
            gauge
                .with_label_values(&[&key.name])
                .set(if up { 1.0 } else { 0.0 });
        }
    }
}

async fn pass(
    context: &Context,
    seen: &Seen,
    key: &Key,
    token: &LeaderToken,
) -> Result<Next, Failure> {
    let Some(location) = context.stores.locations.get(key) else {
        seen.forget(&key.name);
        return Ok(Next::Done);
    };
    if location.metadata.deletion_timestamp.is_some() {
        return Ok(Next::OnChange);
    }
    yield_default(context, &location, token).await?;
    let status = location.status.clone().unwrap_or_default();
    let spec = fingerprint(&location);
    let every = frequency(&location, status.phase);
    if status.phase.is_some()
        && let Some(left) = seen.wait(&key.name, spec, every)
    {
        return Ok(Next::After(left));
    }
    let changes = seen.changes(&key.name);
    let verdict = match tokio::time::timeout(LOOK, look(context, seen, &location, token)).await {
        Ok(verdict) => verdict?,
        Err(_) => Err(format!(
            "the bucket did not answer within {} s",
            LOOK.as_secs()
        )),
    };
    seen.looked(&key.name, spec, changes);
    token.check()?;
    write(context, &location, status, verdict).await?;
    let phase = context
        .stores
        .locations
        .get(key)
        .and_then(|now| now.status.as_ref()?.phase);
    Ok(frequency(&location, phase).map_or(Next::After(HEARTBEAT), Next::After))
}

/// How often this location is looked at; `None`: only when it or a Secret changes.
fn frequency(location: &BackupStorageLocation, phase: Option<LocationPhase>) -> Option<Duration> {
    let asked = location
        .spec
        .validation_frequency
        .map(|every| every.to_std());
    match (phase, asked) {
        (Some(LocationPhase::Available), Some(every)) if every.is_zero() => None,
        (Some(LocationPhase::Available), Some(every)) => Some(every),
        (Some(LocationPhase::Available), None) => Some(FREQUENCY),
        _ => Some(RETRY),
    }
}

fn fingerprint(location: &BackupStorageLocation) -> u64 {
    let mut hasher = DefaultHasher::new();
    location.metadata.uid.hash(&mut hasher);
    serde_json::to_string(&location.spec)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

/// Of several defaults the newest wins; the others step back.
async fn yield_default(
    context: &Context,
    location: &BackupStorageLocation,
    token: &LeaderToken,
) -> Result<(), Failure> {
    if !location.spec.default {
        return Ok(());
    }
    let age = |location: &BackupStorageLocation| {
        (
            location
                .metadata
                .creation_timestamp
                .clone()
                .map(|time| time.0),
            location.name_any(),
        )
    };
    let newer = context
        .stores
        .locations
        .find(|other| other.spec.default && age(other) > age(location));
    let Some(newer) = newer else { return Ok(()) };
    // There would be none if that one has just stepped back.
    let newer = context
        .fetch::<BackupStorageLocation>(&newer.name_any())
        .await?;
    let Some(newer) = newer.filter(|newer| newer.spec.default) else {
        return Ok(());
    };
    token.check()?;
    tracing::warn!(
        location = location.name_any(),
        newer = newer.name_any(),
        "several locations say default: the newest is it"
    );
    let api = context.api::<BackupStorageLocation>();
    let patch = serde_json::json!({
        "metadata": {"uid": location.metadata.uid, "resourceVersion": location.metadata.resource_version},
        "spec": {"default": false}
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch(&location.name_any(), &params, &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// What a look at a location has led to: something to know about one that can be used, or why it cannot be.
type Verdict = Result<Option<String>, String>;

/// Looks into the bucket.
async fn look(
    context: &Context,
    seen: &Seen,
    location: &BackupStorageLocation,
    token: &LeaderToken,
) -> Result<Verdict, Failure> {
    let client = &context.clients.call;
    let store = match open(client, &context.namespace, location).await {
        Ok(store) => store,
        Err(error) => return Ok(Err(chain(&error))),
    };
    if let Err(error) = jackline_storage::layout::validate(&*store).await {
        return Ok(Err(chain(&error)));
    }
    match password::state(client, &context.namespace, &*store).await {
        Ok(PasswordState::Present) => match fit(context, seen, location, &store).await {
            Ok(Fit::Foreign(why)) => return Ok(Err(why)),
            Ok(Fit::Unknown | Fit::Opens) => {}
            Err(error) => return Ok(Err(chain(&error))),
        },
        Ok(PasswordState::Lost(why)) => return Ok(Err(why)),
        Ok(PasswordState::MayBeMade) if read_only(location) => {}
        Ok(PasswordState::MayBeMade) => {
            if let Some(other) = other_repositories(context, location).await? {
                return Ok(Err(other));
            }
            token.check()?;
            password::make(client, &context.namespace).await?;
        }
        Err(error) => return Ok(Err(chain(&error))),
    }
    token.check()?;
    let name = location.name_any();
    let spec = fingerprint(location);
    let written = seen.notes.lock().get(&name).copied();
    let mut written = written.filter(|(of, _)| *of == spec).map(|(_, at)| at);
    let may_write = !read_only(location);
    let found = presence::others(&*store, &context.cluster_uid, may_write, &mut written).await;
    if let Some(written) = written {
        seen.notes.lock().insert(name.clone(), (spec, written));
    }
    match found {
        Ok(others) => Ok(Ok(presence::message(&others))),
        // Backups do not depend on it.
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                location = name,
                "it is not known which clusters use the location"
            );
            Ok(Ok(None))
        }
    }
}

/// Whether the password is the one for the location's repositories.
async fn fit(
    context: &Context,
    seen: &Seen,
    location: &BackupStorageLocation,
    store: &Arc<dyn ObjectStore>,
) -> Result<Fit, LocationError> {
    let (name, spec) = (location.name_any(), fingerprint(location));
    let repositories = &context.stores.repositories;
    repositories.ready().await;
    let opened = repositories.find(|repository| {
        repository.spec.backup_storage_location == name
            && repository.spec.repository_type != UploaderType::Kopia
            && repository.phase() == RepositoryPhase::Ready
    });
    if opened.is_some() {
        let known = (spec, Instant::now(), Fit::Opens);
        seen.tries.lock().insert(name, known);
        return Ok(Fit::Opens);
    }
    if let Some(known) = seen.fit(&name, spec) {
        return Ok(known);
    }
    let fit = password::fit(&context.clients.call, &context.namespace, store).await?;
    let tried = (spec, Instant::now(), fit.clone());
    seen.tries.lock().insert(name, tried);
    Ok(fit)
}

/// Whether another location holds repositories, which the missing password must have been for, or may yet turn out to.
async fn other_repositories(
    context: &Context,
    location: &BackupStorageLocation,
) -> Result<Option<String>, kube::Error> {
    let state = async |other: &BackupStorageLocation| {
        let store = open(&context.clients.call, &context.namespace, other).await?;
        password::state(&context.clients.call, &context.namespace, &*store).await
    };
    // The watch may not have told of all yet.
    for other in context
        .fetch_all::<BackupStorageLocation>(&ListParams::default())
        .await?
    {
        if other.metadata.uid == location.metadata.uid {
            continue;
        }
        let unread = match tokio::time::timeout(OTHER, state(&other)).await {
            Ok(Ok(PasswordState::Lost(why))) => {
                return Ok(Some(format!("location {}: {why}", other.name_any())));
            }
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("it did not answer within {} s", OTHER.as_secs()),
        };
        // One that cannot be read has no say for long: it would keep every other one from starting.
        if is_young(&other, Timestamp::now()) {
            return Ok(Some(format!(
                "no password is made yet: location {} is new, may hold repositories and cannot be read: {unread}",
                other.name_any()
            )));
        }
    }
    Ok(None)
}

fn is_young(location: &BackupStorageLocation, now: Timestamp) -> bool {
    let created = location.metadata.creation_timestamp.as_ref();
    created.is_some_and(|created| now.duration_since(created.0).as_secs_f64() < YOUNG.as_secs_f64())
}

async fn write(
    context: &Context,
    location: &BackupStorageLocation,
    old: BackupStorageLocationStatus,
    verdict: Verdict,
) -> Result<(), Failure> {
    let name = location.name_any();
    let now = Timestamp::now();
    let (phase, message) = match verdict {
        Ok(known) => (LocationPhase::Available, known),
        Err(why) => (LocationPhase::Unavailable, Some(why)),
    };
    let changed = old.phase != Some(phase) || old.message != message;
    let stale = old
        .last_validation_time
        .as_ref()
        .is_none_or(|time| now.duration_since(time.0).unsigned_abs() >= HEARTBEAT);
    if !changed && !stale {
        return Ok(());
    }
    let mut status = old.clone();
    status.phase = Some(phase);
    status.message.clone_from(&message);
    status.last_validation_time = Some(Time(now));
    let api = context.api::<BackupStorageLocation>();
    write_status(
        &api,
        location,
        &status,
        StatusAt::Main,
        Guard::SameObject,
        FIELD_MANAGER,
    )
    .await?;
    if old.phase != Some(phase) || message.is_some() && changed {
        let (kind, reason) = match (phase, &message) {
            (LocationPhase::Available, None) => (EventKind::Normal, "LocationAvailable"),
            (LocationPhase::Available, Some(_)) => (EventKind::Warning, "LocationShared"),
            _ => (EventKind::Warning, "LocationUnavailable"),
        };
        let note = message.unwrap_or_else(|| "the bucket can be used".to_owned());
        match kind {
            EventKind::Normal => tracing::info!(location = name, "{reason}: {note}"),
            EventKind::Warning => tracing::warn!(location = name, "{reason}: {note}"),
        }
        context.events.publish(Event {
            regarding: location.object_ref(&()),
            related: None,
            kind,
            reason,
            action: "Validate",
            note,
        });
    }
    Ok(())
}

/// An error and its causes in one line, without what moves by itself.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_began_before_a_secret_changed_does_not_count() {
        let seen = Seen::default();
        let every = Some(RETRY);
        let before = seen.changes("l");
        seen.looked("l", 7, before);
        assert!(seen.wait("l", 7, every).is_some());
        seen.forget("l");
        assert!(seen.wait("l", 7, every).is_none());
        seen.looked("l", 7, before);
        assert!(seen.wait("l", 7, every).is_none());
    }

    #[test]
    fn a_location_that_cannot_be_read_has_no_say_for_long() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut location = BackupStorageLocation::new("l", Default::default());
        assert!(!is_young(&location, at(10_000)));
        location.metadata.creation_timestamp = Some(Time(at(10_000)));
        assert!(is_young(&location, at(10_599)));
        assert!(!is_young(&location, at(10_600)));
        // Clocks differ.
        assert!(is_young(&location, at(9_990)));
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_password_opens_nothing_is_looked_at_again() {
        let seen = Seen::default();
        let tried = |fit: Fit| {
            let tried = (1, Instant::now(), fit);
            seen.tries.lock().insert("l".to_owned(), tried);
        };
        assert_eq!(seen.fit("l", 1), None);
        tried(Fit::Unknown);
        assert_eq!(seen.fit("l", 1), None);
        let foreign = Fit::Foreign("shop".to_owned());
        tried(foreign.clone());
        assert_eq!(seen.fit("l", 1), Some(foreign));
        // Another spec may mean another bucket.
        assert_eq!(seen.fit("l", 2), None);
        tokio::time::advance(BELIEVED).await;
        assert_eq!(seen.fit("l", 1), None);
        tried(Fit::Opens);
        tokio::time::advance(BELIEVED).await;
        assert_eq!(seen.fit("l", 1), Some(Fit::Opens));
        seen.forget("l");
        assert_eq!(seen.fit("l", 1), None);
    }
}
