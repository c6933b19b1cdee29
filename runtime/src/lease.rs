//! Leader election by a `coordination.k8s.io/v1` Lease.
//!
//! Three rules make it safe where others were not:
//! - every write is a PUT with the resourceVersion that was read, so of two candidates one wins;
//! - another holder counts as gone when its lease did not change for the lease's duration *on our monotonic clock*; clocks of two
//!   machines are never compared;
//! - our own right to act ends at the start of the last successful request plus duration minus margin, whether or not anybody tells
//!   us.
//!
//! A lease does not fence: a process that stood still learns late that it has lost. So effects must be idempotent as well, and what
//! must not be undone carries the [`Epoch`] of its writer.

use std::{fmt, str::FromStr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::Metrics;

/// Which lease, and who asks for it.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// Namespace of the Lease object.
    pub namespace: String,
    /// Name of the Lease object.
    pub name: String,
    /// Who we are; unique per process instance.
    pub identity: String,
    /// After this time without a renewal another may take over.
    pub duration: Duration,
}

impl LeaseSettings {
    /// A lease of 15 s with an identity made of the host's name and a random part.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, host: &str) -> Self {
        let random = uuid::Uuid::new_v4().simple().to_string();
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: format!("{host}_{}", random.get(..8).unwrap_or(&random)),
            duration: Duration::from_secs(15),
        }
    }

    /// Time between renewals: three fit before our right ends.
    fn renew_every(&self) -> Duration {
        self.duration.mul_f64(0.25)
    }

    /// Our right to act ends this long before others may take over.
    fn margin(&self) -> Duration {
        self.duration.mul_f64(0.2)
    }

    fn poll_every(&self) -> Duration {
        self.duration.mul_f64(0.1)
    }
}

/// This process does not hold the lease (any more).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this process is not the leader")]
pub struct NotLeader;

/// Which leader of all that a Lease has had: counted by the Lease itself, so every process agrees. Epochs of two Leases, such as one
/// that was deleted and made anew, cannot be compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epoch {
    transitions: i32,
    lease: String,
}

impl Epoch {
    fn of(lease: &LeaseObject) -> Self {
        let spec = lease.spec.as_ref();
        Self {
            transitions: spec.and_then(|spec| spec.lease_transitions).unwrap_or(0),
            lease: lease.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// Whether the leader of this epoch was followed by that of the other.
    pub fn is_before(&self, other: &Self) -> bool {
        self.lease == other.lease && self.transitions < other.transitions
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transitions, self.lease)
    }
}

/// This is no epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <number>/<UID of a Lease>")]
pub struct NoEpoch;

impl FromStr for Epoch {
    type Err = NoEpoch;

    fn from_str(text: &str) -> Result<Self, NoEpoch> {
        let (transitions, lease) = text.split_once('/').ok_or(NoEpoch)?;
        Ok(Self {
            transitions: transitions.parse().map_err(|_| NoEpoch)?,
            lease: lease.to_owned(),
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Held {
    /// Counts up at each win, so that a token of an earlier term never revives.
    term: u64,
    /// Until when we may act; `None` when we do not hold the lease.
    until: Option<Instant>,
    /// Of the last win.
    epoch: Epoch,
}

/// The state of the election as this process sees it. Clones share it.
#[derive(Debug, Clone)]
pub struct Lease {
    state: watch::Receiver<Held>,
}

/// The right to act as leader, for one term. Check it before each effect.
#[derive(Debug, Clone)]
pub struct LeaderToken {
    term: u64,
    epoch: Epoch,
    state: watch::Receiver<Held>,
}

impl LeaderToken {
    /// `Ok` when we may act now.
    pub fn check(&self) -> Result<(), NotLeader> {
        let held = self.state.borrow();
        match held.until {
            Some(until) if held.term == self.term && Instant::now() < until => Ok(()),
            _ => Err(NotLeader),
        }
    }

    /// Which leader this is.
    pub fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// Over when the right has ended, at the latest when its time is over.
    pub async fn lost(&self) {
        let mut state = self.state.clone();
        loop {
            let until = {
                let held = state.borrow_and_update();
                held.until.filter(|_| held.term == self.term)
            };
            let Some(until) = until else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {
                    if self.check().is_err() {
                        return;
                    }
                }
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// A token that is valid until the returned sender is dropped; for tests.
    pub fn for_tests() -> (Self, impl Drop) {
        struct Guard(#[allow(dead_code)] watch::Sender<Held>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.send_modify(|held| held.until = None);
            }
        }
        let until = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let (sender, state) = watch::channel(Held {
            term: 1,
            until: Some(until),
            epoch: Epoch::default(),
        });
        let token = Self {
            term: 1,
            epoch: Epoch::default(),
            state,
        };
        (token, Guard(sender))
    }
}

impl Lease {
    /// The token, if we lead now.
    pub fn token(&self) -> Option<LeaderToken> {
        let held = self.state.borrow().clone();
        let token = LeaderToken {
            term: held.term,
            epoch: held.epoch,
            state: self.state.clone(),
        };
        token.check().is_ok().then_some(token)
    }

    /// Waits until we lead.
    pub async fn acquired(&self) -> LeaderToken {
        let mut state = self.state.clone();
        loop {
            state.borrow_and_update();
            if let Some(token) = self.token() {
                return token;
            }
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs `work` while we lead: starts it at each win, drops it at each loss, ends when it ends.
    pub async fn while_leading<T, Fut>(&self, work: impl Fn(LeaderToken) -> Fut) -> T
    where
        Fut: Future<Output = T>,
    {
        loop {
            let token = self.acquired().await;
            tokio::select! {
                biased;
                () = token.lost() => {}
                done = work(token.clone()) => return done,
            }
        }
    }
}

/// Starts nothing by itself: give the future to the supervisor. It ends after `release` is cancelled, having given the lease back.
pub fn elect(
    client: Client,
    settings: LeaseSettings,
    metrics: Metrics,
    release: CancellationToken,
) -> (Lease, impl Future<Output = ()> + Send) {
    let (sender, state) = watch::channel(Held {
        term: 0,
        until: None,
        epoch: Epoch::default(),
    });
    let api = Api::namespaced(client, &settings.namespace);
    let election = Election {
        api,
        settings,
        metrics,
        sender,
        seen: None,
    };
    (Lease { state }, election.run(release))
}

/// The other holder's lease as last read.
#[derive(Debug)]
struct Seen {
    version: String,
    since: Instant,
}

struct Election {
    api: Api<LeaseObject>,
    settings: LeaseSettings,
    metrics: Metrics,
    sender: watch::Sender<Held>,
    seen: Option<Seen>,
}

impl Election {
    async fn run(mut self, release: CancellationToken) {
        let mut held: Option<LeaseObject> = None;
        loop {
            let started = Instant::now();
            let deadline = crate::client::LEASE_TIMEOUT;
            let step = async {
                match &held {
                    Some(lease) => self.renew(lease).await,
                    None => self.try_acquire().await,
                }
            };
            let result = tokio::select! {
                biased;
                () = release.cancelled() => break,
                result = tokio::time::timeout(deadline, step) => result,
            };
            let pause = match result {
                Ok(Ok(Some(lease))) => {
                    self.won(started, &lease);
                    held = Some(lease);
                    self.settings.renew_every()
                }
                Ok(Ok(None)) => {
                    held = None;
                    self.lost("another holds it");
                    self.next_look()
                }
                Ok(Err(error)) => {
                    let error = crate::logging::chain(&error);
                    tracing::warn!(lease = self.settings.name, error, "election request failed");
                    self.settings.poll_every()
                }
                Err(_) => {
                    tracing::warn!(lease = self.settings.name, "election request timed out");
                    self.settings.poll_every()
                }
            };
            if held.is_some()
                && self
                    .sender
                    .borrow()
                    .until
                    .is_none_or(|until| until <= Instant::now())
            {
                // Not renewed in time. The object may still carry our name: read it anew.
                held = None;
                self.lost("it could not be renewed in time");
            }
            tokio::select! {
                () = release.cancelled() => break,
                () = tokio::time::sleep_until(started + pause) => {}
            }
        }
        self.lost("shutting down");
        if let Some(lease) = held {
            self.give_back(lease).await;
        }
    }

    fn won(&self, started: Instant, lease: &LeaseObject) {
        let until = started + self.settings.duration - self.settings.margin();
        self.sender.send_modify(|held| {
            if held.until.is_none() {
                held.term += 1;
                held.epoch = Epoch::of(lease);
                tracing::info!(
                    lease = self.settings.name,
                    identity = self.settings.identity,
                    "leading"
                );
                let families = &self.metrics.families;
                families
                    .leader_transitions
                    .with_label_values(&["won"])
                    .inc();
            }
            held.until = Some(until);
        });
        self.metrics.families.leader.set(1);
    }

    fn lost(&self, why: &str) {
        let name = self.settings.name.as_str();
        self.sender.send_if_modified(|held| {
            let led = held.until.take().is_some();
            if led {
                tracing::warn!(lease = name, why, "not leading any more");
                let families = &self.metrics.families;
                families
                    .leader_transitions
                    .with_label_values(&["lost"])
                    .inc();
            }
            led
        });
        self.metrics.families.leader.set(0);
    }

    /// When to look again while another leads: at the moment that its time is over, if that is near.
    fn next_look(&self) -> Duration {
        let poll = self.settings.poll_every();
        let over = self.seen.as_ref().map(|seen| {
            (seen.since + self.settings.duration).saturating_duration_since(Instant::now())
        });
        over.map_or(poll, |left| left.min(poll))
            .max(Duration::from_millis(50))
    }

    /// The lease if it is ours now, `None` if another holds it.
    async fn try_acquire(&mut self) -> Result<Option<LeaseObject>, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.settings.name).await? else {
            let wanted = LeaseObject {
                metadata: ObjectMeta {
                    name: Some(self.settings.name.clone()),
                    namespace: Some(self.settings.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            return won_or_beaten(self.api.create(&PostParams::default(), &wanted).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.settings.identity && !self.is_over(&lease) {
            return Ok(None);
        }
        let mut wanted = lease;
        wanted.spec = Some(self.spec(Some(&spec)));
        wanted.metadata.managed_fields = None;
        let result = self
            .api
            .replace(&self.settings.name, &PostParams::default(), &wanted)
            .await;
        won_or_beaten(result)
    }

    async fn renew(&self, lease: &LeaseObject) -> Result<Option<LeaseObject>, kube::Error> {
        let mut wanted = lease.clone();
        wanted.spec = Some(self.spec(lease.spec.as_ref()));
        wanted.metadata.managed_fields = None;
        match self
            .api
            .replace(&self.settings.name, &PostParams::default(), &wanted)
            .await
        {
            // The answer to an earlier renewal may have been lost: then the object is still ours, at a newer version.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let now = self.api.get_opt(&self.settings.name).await?;
                let ours = now.filter(|lease| {
                    lease
                        .spec
                        .as_ref()
                        .and_then(|s| s.holder_identity.as_deref())
                        == Some(self.settings.identity.as_str())
                });
                let Some(mut wanted) = ours else {
                    return Ok(None);
                };
                wanted.spec = Some(self.spec(wanted.spec.as_ref()));
                wanted.metadata.managed_fields = None;
                won_or_beaten(
                    self.api
                        .replace(&self.settings.name, &PostParams::default(), &wanted)
                        .await,
                )
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            other => other.map(Some),
        }
    }

    /// Whether the other's lease stayed as it is for its whole duration, as far as we saw.
    fn is_over(&mut self, lease: &LeaseObject) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let now = Instant::now();
        let theirs = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_duration_seconds);
        let duration = theirs
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.settings.duration, Duration::from_secs);
        match &self.seen {
            Some(seen) if seen.version == version => now >= seen.since + duration,
            _ => {
                self.seen = Some(Seen {
                    version,
                    since: now,
                });
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = |spec: &&LeaseSpec| {
            spec.holder_identity.as_deref() == Some(self.settings.identity.as_str())
        };
        let renewed = before.filter(mine);
        let transitions = before.and_then(|spec| spec.lease_transitions);
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: i32::try_from(self.settings.duration.as_secs().max(1)).ok(),
            acquire_time: renewed
                .and_then(|spec| spec.acquire_time.clone())
                .or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: match (before, renewed) {
                (None, _) => Some(0),
                (_, Some(_)) => transitions,
                (Some(_), None) => Some(transitions.unwrap_or(0).saturating_add(1)),
            },
            ..LeaseSpec::default()
        }
    }

    async fn give_back(&self, lease: LeaseObject) {
        let mut wanted = lease;
        if let Some(spec) = &mut wanted.spec {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        wanted.metadata.managed_fields = None;
        let params = PostParams::default();
        let put = self.api.replace(&self.settings.name, &params, &wanted);
        match tokio::time::timeout(crate::client::LEASE_TIMEOUT, put).await {
            Ok(Ok(_)) => tracing::info!(lease = self.settings.name, "lease given back"),
            Ok(Err(error)) => tracing::warn!(%error, "lease could not be given back"),
            Err(_) => tracing::warn!("giving the lease back timed out"),
        }
    }
}

/// A conflict means that another was faster.
fn won_or_beaten(
    result: Result<LeaseObject, kube::Error>,
) -> Result<Option<LeaseObject>, kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
pub(crate) mod tests;
