//! ClusterBackupPolicy and BackupPolicy: valid or not, when the next backup is due, what is kept, and how their volumes are doing.

pub mod backup;
pub mod conditions;
pub mod metrics;

mod object;
mod report;

use std::sync::Arc;
use std::time::Duration;

use jackline_crds::jackline::PolicyStatus;
use jackline_crds::names::{FIELD_MANAGER, finalizer as name};
use jackline_crds::velero::{Backup, BackupPhase, LocationPhase};
use jackline_policy::condition::{Reason, Status};
use jackline_policy::schedule::{self, Base, Verdict};
use jackline_policy::spec::{DeletionPolicy, Mode, PolicyKind};
use jackline_policy::{Policy, PolicyId, naming};
use jackline_runtime::status::{Guard, StatusAt, write_status};
use jackline_runtime::{Event, EventKind, Failure, Key, Kit, LeaderToken, Lease, Next, RunOptions};
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::args::Engine;
use crate::context::Context;
use crate::coverage::short_name;
use crate::world::World;
use crate::{finalizer, retention};
pub use backup::policy_of;
use metrics::{PolicyMetrics, Shown};
pub(crate) use object::PolicyObject;
use report::Report;

/// Starts everything that policies need: the index, annotations, schedules, retention, coverage. Schedules of velero.io report their interval
/// through the metrics that come back.
///
/// # Errors
/// When metrics cannot be registered.
pub fn start(
    context: &Arc<Context>,
    kit: &Kit,
    lease: &Lease,
) -> Result<Arc<PolicyMetrics>, prometheus::Error> {
    let metrics = Arc::new(PolicyMetrics::register(context.metrics.registry())?);
    let world = World::start(context, kit);
    // Set once: there is one registration list.
    let _ = context.governed.set(Arc::new(world.clone()));
    crate::annotator::register(context, &world, kit, lease)?;
    crate::coverage::register(context, &world, &metrics, kit, lease);
    register(context, &world, &metrics, kit, lease);
    Ok(metrics)
}

fn register(
    context: &Arc<Context>,
    world: &Arc<World>,
    metrics: &Arc<PolicyMetrics>,
    kit: &Kit,
    lease: &Lease,
) {
    let policies = Arc::new(Policies {
        context: context.clone(),
        world: world.clone(),
        metrics: metrics.clone(),
    });
    // A Schedule of the same name stands in a policy's way, or has stopped doing so.
    let of = world.clone();
    context
        .stores
        .schedules
        .on_change(move |_| of.every_policy());
    // So does a Velero in the namespace.
    let of = world.clone();
    context.stores.veleros.on_change(move |_| of.every_policy());
    let options = RunOptions::new().pass_deadline(Duration::from_secs(120));
    kit.run_leading(&world.policy_queue, options, lease, move |id, token| {
        let policies = policies.clone();
        async move { policies.pass(&id, &token).await }
    });
}

/// How often a policy that goes looks whether a backup that is at work or read by a restore can go too.
const AT_WORK: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Policies {
    context: Arc<Context>,
    world: Arc<World>,
    metrics: Arc<PolicyMetrics>,
}

/// Why a valid policy is not in force.
struct Refusal {
    reason: Reason,
    message: String,
}

/// What the schedule says, and did.
#[derive(Default)]
struct Timing {
    next: Option<Timestamp>,
    /// Name of a backup that was made in this pass.
    made: Option<String>,
}

impl Policies {
    async fn pass(&self, id: &PolicyId, token: &LeaderToken) -> Result<Next, Failure> {
        self.context.stores.ready().await;
        self.world.ready().await;
        let call = self.context.clients.call.clone();
        match id.kind {
            PolicyKind::ClusterBackupPolicy => {
                match self.world.cluster_policies.get(&Key::cluster(&id.name)) {
                    Some(object) => self.look(&Api::all(call), &*object, id, token).await,
                    None => Ok(self.forget(id)),
                }
            }
            PolicyKind::BackupPolicy => {
                match self
                    .world
                    .policies
                    .get(&Key::namespaced(&id.namespace, &id.name))
                {
                    Some(object) => {
                        self.look(&Api::namespaced(call, &id.namespace), &*object, id, token)
                            .await
                    }
                    None => Ok(self.forget(id)),
                }
            }
        }
    }

    fn forget(&self, id: &PolicyId) -> Next {
        self.metrics
            .forget(&short_name(id), &naming::schedule_name(id));
        Next::Done
    }

    async fn look<K: PolicyObject>(
        &self,
        api: &Api<K>,
        object: &K,
        id: &PolicyId,
        token: &LeaderToken,
    ) -> Result<Next, Failure> {
        if object.meta().deletion_timestamp.is_some() {
            return self.farewell(api, object, token).await;
        }
        let now = Timestamp::now();
        let previous = object.status().cloned().unwrap_or_default();
        let policy = match object.policy() {
            Ok(policy) => policy,
            Err(invalid) => {
                let status = report::refused(
                    &previous,
                    object.meta(),
                    Reason::InvalidSpec,
                    &invalid.to_string(),
                    now,
                );
                self.metrics.show(
                    &short_name(id),
                    &naming::schedule_name(id),
                    Shown::default(),
                );
                return self
                    .write(api, object, &status, token, Next::OnChange)
                    .await;
            }
        };
        finalizer::set(api, object, name::POLICY, takes_along(&policy), token).await?;
        let location = self.world.read(|state| state.location(&policy));
        let refusal = self.refusal(&policy, &location);
        let timing = match &refusal {
            None => {
                self.schedule(object, &policy, &previous, &location, token, now)
                    .await?
            }
            Some(_) => Timing {
                next: previous.next_schedule_time.as_ref().map(|time| time.0),
                made: None,
            },
        };
        let kept = match &refusal {
            None => {
                retention::apply(&self.context, &self.world, api, object, &policy, token, now)
                    .await?
            }
            Some(_) => retention::Kept::default(),
        };
        let shared = self.shared(&location);
        let report = Report {
            world: &self.world,
            policy: &policy,
            backups: &self.backups(id),
            refusal: refusal
                .as_ref()
                .map(|refusal| (refusal.reason, refusal.message.as_str())),
            next: timing.next,
            made: timing.made,
            held: kept.held.as_deref(),
            shared: shared.as_deref(),
            engine: self.context.args.engine,
        };
        let (status, shown, turns) = report.status(&previous, object.meta(), now);
        self.metrics
            .show(&short_name(id), &naming::schedule_name(id), shown);
        let due = refusal.is_none().then_some(timing.next).flatten();
        let next = [due, turns, kept.next]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min();
        self.write(
            api,
            object,
            &status,
            token,
            next.map_or(Next::OnChange, Next::At),
        )
        .await
    }

    /// A policy that goes takes its backups along where it says so.
    async fn farewell<K: PolicyObject>(
        &self,
        api: &Api<K>,
        object: &K,
        token: &LeaderToken,
    ) -> Result<Next, Failure> {
        let held = object.meta().finalizers.as_deref().unwrap_or_default();
        if !held.iter().any(|entry| entry == name::POLICY) {
            return Ok(Next::OnChange);
        }
        if self.context.args.engine == Engine::Builtin {
            self.context.alone().await?;
        }
        // What is not valid any more says nothing, and its backups stay.
        if let Some(policy) = object.policy().ok().filter(takes_along)
            && !retention::take_along(&self.context, &self.world, &policy, token).await?
        {
            return Ok(Next::After(AT_WORK));
        }
        finalizer::set(api, object, name::POLICY, false, token).await?;
        Ok(Next::OnChange)
    }

    async fn write<K: PolicyObject>(
        &self,
        api: &Api<K>,
        object: &K,
        status: &PolicyStatus,
        token: &LeaderToken,
        next: Next,
    ) -> Result<Next, Failure> {
        token.check()?;
        write_status(
            api,
            object,
            status,
            StatusAt::Subresource,
            Guard::SameObject,
            FIELD_MANAGER,
        )
        .await?;
        Ok(next)
    }

    /// What keeps a valid policy from being in force.
    fn refusal(&self, policy: &Policy, location: &str) -> Option<Refusal> {
        let refuse = |reason, message| Some(Refusal { reason, message });
        if self.context.args.engine == Engine::Builtin
            && let Some(why) = self.context.foreign()
        {
            return refuse(Reason::ForeignVelero, why);
        }
        let name = naming::schedule_name(&policy.id);
        if self
            .context
            .stores
            .schedules
            .get(&self.context.key(&name))
            .is_some()
        {
            return refuse(
                Reason::NameTaken,
                format!("a Schedule is named {name}, as the backups of this policy would be"),
            );
        }
        if let Some(other) = self.world.read(|state| state.same_name(policy)) {
            return refuse(
                Reason::NameTaken,
                format!("{other} is older and gives its backups the same names: {name}"),
            );
        }
        let Some(found) = self
            .context
            .stores
            .locations
            .get(&self.context.key(location))
        else {
            return refuse(
                Reason::UnknownLocation,
                format!("there is no BackupStorageLocation {location}"),
            );
        };
        let status = found.status.as_ref();
        if status.and_then(|status| status.phase) == Some(LocationPhase::Unavailable) {
            let why = status
                .and_then(|status| status.message.as_deref())
                .unwrap_or("no reason given");
            return refuse(
                Reason::LocationUnavailable,
                format!("BackupStorageLocation {location} is Unavailable: {why}"),
            );
        }
        None
    }

    /// Who else uses a location that can be used.
    fn shared(&self, location: &str) -> Option<String> {
        let found = self
            .context
            .stores
            .locations
            .get(&self.context.key(location))?;
        let status = found.status.as_ref()?;
        let usable = status.phase == Some(LocationPhase::Available);
        usable.then(|| status.message.clone()).flatten()
    }

    fn backups(&self, id: &PolicyId) -> Vec<Arc<Backup>> {
        self.context
            .stores
            .backups
            .filter(|backup| policy_of(backup).as_ref() == Some(id))
    }

    async fn schedule<K: PolicyObject>(
        &self,
        object: &K,
        policy: &Policy,
        previous: &PolicyStatus,
        location: &str,
        token: &LeaderToken,
        now: Timestamp,
    ) -> Result<Timing, Failure> {
        let Some(spec) = policy
            .spec
            .schedule
            .as_ref()
            .filter(|_| !policy.spec.suspend)
        else {
            return Ok(Timing::default());
        };
        let effective = schedule::effective(spec, &policy.id);
        let planned = previous.next_schedule_time.as_ref().map(|time| time.0);
        let base = match planned {
            Some(planned) if previous.effective_schedule.as_deref() == Some(&*effective) => {
                Base::Planned(planned)
            }
            // Changed or resumed: nothing that lies behind is made good.
            _ if previous.effective_schedule.is_some() => Base::After(now),
            _ => Base::After(policy.created),
        };
        let active = |backup: &Arc<Backup>| {
            !backup.phase().is_terminal() && backup.phase() != BackupPhase::Deleting
        };
        let running = self.backups(&policy.id).iter().any(active);
        let verdict = schedule::due(spec, &policy.id, base, running, now);
        let timing = |next| Timing { next, made: None };
        Ok(match verdict {
            Verdict::Wait { until } => timing(Some(until)),
            Verdict::Never => timing(None),
            Verdict::Overlap { .. } => timing(planned.or(Some(now))),
            Verdict::Missed { tick, missed, then } => {
                let note = format!(
                    "the backup due at {tick} was not started in time ({} runs missed)",
                    missed + 1
                );
                self.say(object, EventKind::Warning, "BackupMissed", note);
                timing(then)
            }
            Verdict::Run { then, .. } if policy.spec.mode == Mode::Preview => timing(then),
            Verdict::Run { tick, missed, then } => {
                let made = self.run(policy, location, tick, token).await?;
                if missed > 0 {
                    self.say(
                        object,
                        EventKind::Warning,
                        "BackupsMissed",
                        format!("{missed} runs before {tick} were missed"),
                    );
                }
                Timing { next: then, made }
            }
        })
    }

    /// Creates the Backup of a tick; one that is there already is the same one.
    async fn run(
        &self,
        policy: &Policy,
        location: &str,
        tick: Timestamp,
        token: &LeaderToken,
    ) -> Result<Option<String>, Failure> {
        let Some(included) = self
            .world
            .read(|state| state.included_namespaces(&policy.id))
        else {
            return Ok(None);
        };
        let run = backup::Run {
            namespace: &self.context.namespace,
            location,
            cluster_uid: &self.context.cluster_uid,
            included_namespaces: &included,
            tick,
        };
        let backup =
            backup::build(policy, run).map_err(|error| Failure::terminal("BadTemplate", error))?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        token.check()?;
        match self.context.api::<Backup>().create(&params, &backup).await {
            Ok(_) => {
                tracing::info!(policy = %policy.id, backup = backup.name_any(), "backup is due")
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Some(backup.name_any()))
    }

    fn say<K: PolicyObject>(
        &self,
        object: &K,
        kind: EventKind,
        reason: &'static str,
        note: String,
    ) {
        self.context.events.publish(Event {
            regarding: object.object_ref(&()),
            related: None,
            kind,
            reason,
            action: "Schedule",
            note,
        });
    }
}

fn takes_along(policy: &Policy) -> bool {
    policy.spec.deletion_policy == DeletionPolicy::Delete && policy.spec.mode == Mode::Enforce
}

/// Ready as it follows from what stands in the way.
fn ready(
    policy: &Policy,
    refusal: Option<(Reason, &str)>,
    engine: Engine,
) -> (Status, Reason, String) {
    match refusal {
        Some((reason, message)) => (Status::False, reason, message.to_owned()),
        None if policy.spec.suspend => (
            Status::True,
            Reason::Suspended,
            "no backups are made".to_owned(),
        ),
        None if policy.spec.mode == Mode::Preview => (
            Status::True,
            Reason::Preview,
            "nothing but this status is written".to_owned(),
        ),
        None => {
            let idle = match engine {
                Engine::Builtin => Vec::new(),
                Engine::Velero => policy.spec.engine_fields(),
            };
            let message = match idle.is_empty() {
                true => String::new(),
                false => format!(
                    "without effect, as Velero moves the data: {}",
                    idle.join(", ")
                ),
            };
            (Status::True, Reason::Accepted, message)
        }
    }
}
