//! What the index answers: what a pod's annotations should say, which volumes a policy's backup moves, and how every volume of a
//! namespace is doing.

use std::sync::Arc;
use std::time::Duration;

use jackline_policy::annotate::{self, Desired, Styles, VolumeState};
use jackline_policy::coverage::{Carrier, Intent, Reason};
use jackline_policy::cron::Cron;
use jackline_policy::facts::{
    ClaimFacts, ClaimView, Exempt, NamespaceFacts, PodFacts, PodPhase, PodVolume, VolumeType,
};
use jackline_policy::select::{self, Exemption};
use jackline_policy::spec::{Mode, NamespaceRule, PolicyKind};
use jackline_policy::{Policy, PolicyId, naming};
use jackline_runtime::Key;

use super::state::{Governor, State};
use crate::context::GovernedVolume;

/// What is to be done with a pod's annotations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    pub uid: String,
    /// Held after the write; `None` = nothing to write.
    pub apply: Option<Desired>,
    /// Volumes that a policy wants from this pod and a person's annotation leaves out.
    pub conflicts: Vec<String>,
}

/// How often a repository is pruned and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Upkeep {
    pub prune: Option<Duration>,
    pub check: Option<Duration>,
    /// How much of the data a check reads, in hundredths of a percent.
    pub read_data: u32,
}

/// A volume, seen for its verdict.
#[derive(Debug, Clone)]
pub struct Situation {
    pub claim: Option<String>,
    pub pod: Option<String>,
    pub volume: Option<String>,
    /// Under which its recovery points are known.
    pub lineage: String,
    pub intent: Intent,
    pub carrier: Carrier,
    pub governor: Option<Governor>,
    /// All policies that want it, in Preview too.
    pub wanted_by: Vec<PolicyId>,
    /// A rule or an annotation, in words.
    pub detail: Option<String>,
}

/// The identity of a volume without a claim.
pub fn pod_lineage(namespace: &str, pod: &str, volume: &str) -> String {
    format!("pod:{namespace}/{pod}/{volume}")
}

impl State {
    /// The plan for a pod; `None` when it is gone, or its namespace is going.
    pub fn pod_plan(&self, name: &Key) -> Option<PodPlan> {
        let pod = self.pods.get(name)?;
        if pod.terminating
            || self
                .namespaces
                .get(&pod.namespace)
                .is_none_or(|n| n.terminating)
        {
            return None;
        }
        let policies = self.policies_of(&pod.namespace);
        let mut styles = Styles::default();
        for policy in policies
            .iter()
            .filter(|policy| policy.spec.mode == Mode::Enforce)
        {
            match policy.spec.template.opt_out() {
                true => styles.opt_out = true,
                false => styles.opt_in = true,
            }
        }
        let volumes: Vec<VolumeState<'_>> = pod
            .volumes
            .iter()
            .map(|volume| VolumeState {
                name: &volume.name,
                eligible: select::eligible(volume, self.view_of(pod, volume)).is_ok(),
                elected: self.carries(&policies, pod, volume),
            })
            .collect();
        let desired = annotate::desired(pod.is_running(), styles, &volumes);
        let refused = |volume: &&VolumeState<'_>| {
            volume.elected && styles.opt_in && annotate::refuses(&pod.backup_volumes, volume.name)
        };
        let conflicts = match pod.is_running() {
            true => volumes
                .iter()
                .filter(refused)
                .map(|volume| volume.name.to_owned())
                .collect(),
            false => Vec::new(),
        };
        Some(PodPlan {
            uid: pod.uid.to_string(),
            apply: annotate::apply(&pod.backup_volumes, &pod.backup_volumes_excludes, &desired),
            conflicts,
        })
    }

    /// Whether this pod is the one that this volume is backed up from.
    fn carries(&self, policies: &[Arc<Policy>], pod: &PodFacts, volume: &PodVolume) -> bool {
        match &volume.claim {
            Some(claim) => {
                let plan = self.plans.get(&Key::namespaced(&*pod.namespace, &**claim));
                plan.and_then(|plan| plan.carrier.as_ref())
                    .is_some_and(|(carrier, name)| *carrier == pod.name && *name == volume.name)
            }
            None => pod.is_running() && !self.wanting(policies, pod, volume).is_empty(),
        }
    }

    /// The volumes that a backup of the policy moves now; `None` when there is no such policy. Where the backup goes does not matter: the
    /// policy may have been given another location since it was made.
    pub fn governed(&self, policy: &PolicyId) -> Option<Vec<GovernedVolume>> {
        let found = self.policies.get(policy)?;
        let governs = |governors: &[Governor]| governors.iter().any(|g| g.policy.id == *policy);
        let opt_in = !found.spec.template.opt_out();
        let mut volumes = Vec::new();
        for (claim, plan) in self
            .plans
            .iter()
            .filter(|(_, plan)| governs(&plan.governors))
        {
            let Some((pod, volume)) = &plan.carrier else {
                continue;
            };
            let facts = self.pods.get(&Key::namespaced(claim.ns(), &**pod));
            // A person's annotation that leaves it out is respected.
            if facts.is_some_and(|pod| opt_in && annotate::refuses(&pod.backup_volumes, volume)) {
                continue;
            }
            volumes.push(GovernedVolume {
                namespace: claim.ns().to_owned(),
                pod: pod.to_string(),
                volume: volume.to_string(),
                claim: Some(claim.name.clone()),
            });
        }
        for (_, pod) in self.pods.iter().filter(|(_, pod)| pod.is_running()) {
            for volume in pod.volumes.iter().filter(|volume| volume.claim.is_none()) {
                let policies = self.policies_of(&pod.namespace);
                let wanting = self.wanting(&policies, pod, volume);
                let refused = opt_in && annotate::refuses(&pod.backup_volumes, &volume.name);
                if !wanting.is_empty() && !refused && governs(&self.governors(&wanting)) {
                    volumes.push(GovernedVolume {
                        namespace: pod.namespace.to_string(),
                        pod: pod.name.to_string(),
                        volume: volume.name.to_string(),
                        claim: None,
                    });
                }
            }
        }
        volumes.sort();
        Some(volumes)
    }

    /// Namespaces that a policy selects, sorted; `None` when there is no such policy.
    pub fn namespaces_of(&self, policy: &PolicyId) -> Option<Vec<String>> {
        let policy = self.policies.get(policy)?;
        let mut names: Vec<String> = self
            .namespaces
            .iter()
            .filter(|(_, facts)| !facts.terminating && select::selects_namespace(policy, facts))
            .map(|(name, _)| name.to_string())
            .collect();
        names.sort();
        Some(names)
    }

    /// What a backup of the policy includes: everything where it selects everything, else the namespaces that it selects. Where there is
    /// none (any more), the names and globs that it was given: an empty list would mean all. `None` = nothing can be said.
    pub fn included_namespaces(&self, policy: &PolicyId) -> Option<Vec<String>> {
        let found = self.policies.get(policy)?;
        let rule = &found.spec.namespaces;
        if policy.kind == PolicyKind::ClusterBackupPolicy && *rule == NamespaceRule::default() {
            return Some(vec!["*".to_owned()]);
        }
        let selected = self.namespaces_of(policy)?;
        let names = if selected.is_empty() {
            rule.include_patterns().to_vec()
        } else {
            selected
        };
        (!names.is_empty()).then_some(names)
    }

    /// The location that a policy writes to.
    pub fn location(&self, policy: &Policy) -> String {
        self.location_of(policy).to_string()
    }

    /// An older policy whose backups would be named as this one's.
    pub fn same_name(&self, policy: &Policy) -> Option<PolicyId> {
        let name = naming::schedule_name(&policy.id);
        let age = |policy: &Policy| (policy.created, policy.id.clone());
        let same = |other: &&Arc<Policy>| {
            other.id != policy.id
                && naming::schedule_name(&other.id) == name
                && age(other) < age(policy)
        };
        self.policies
            .values()
            .find(same)
            .map(|other| other.id.clone())
    }

    /// How the repository of a namespace at a location is to be looked after: of several policies, the most demanding decides.
    pub fn upkeep(&self, namespace: &str, location: &str) -> Upkeep {
        // A namespace that is gone has a repository still.
        let gone = NamespaceFacts {
            name: namespace.into(),
            labels: Default::default(),
            exempt: None,
            terminating: false,
        };
        let facts = self.namespaces.get(&namespace.into()).unwrap_or(&gone);
        let policies = self.policies.values().filter(|policy| {
            policy.spec.mode == Mode::Enforce
                && *self.location_of(policy) == *location
                && select::selects_namespace(policy, facts)
        });
        let mut upkeep = Upkeep::default();
        for repository in policies.map(|policy| &policy.spec.repository) {
            let shorter = |of: Option<Duration>, cron: Option<&Cron>| {
                let wanted = cron.and_then(Cron::longest_interval);
                of.into_iter().chain(wanted).min()
            };
            upkeep.prune = shorter(upkeep.prune, repository.prune.as_ref());
            upkeep.check = shorter(upkeep.check, repository.check.as_ref());
            upkeep.read_data = upkeep
                .read_data
                .max(repository.check_read_data.unwrap_or(0));
        }
        upkeep
    }

    /// The volumes that exist, under the names by which their recovery points are known.
    pub fn lineages(&self) -> std::collections::HashSet<String> {
        let claims = self
            .claims
            .iter()
            .map(|(_, claim)| claim.lineage.to_string());
        let pods = self.pods.iter().flat_map(|(_, pod)| {
            let own = pod.volumes.iter().filter(|volume| volume.claim.is_none());
            own.map(|volume| pod_lineage(&pod.namespace, &pod.name, &volume.name))
        });
        claims.chain(pods).collect()
    }

    /// Every claim of a namespace and every other volume that a policy wants.
    pub fn situations(&self, namespace: &str) -> Vec<Situation> {
        let policies = self.policies_of(namespace);
        let mut found: Vec<Situation> = self
            .claims
            .of_namespace(namespace)
            .filter(|(_, claim)| !claim.terminating)
            .map(|(key, claim)| self.of_claim(&policies, key, claim))
            .collect();
        for (_, pod) in self
            .pods
            .of_namespace(namespace)
            .filter(|(_, pod)| !pod.terminating)
        {
            let own = pod.volumes.iter().filter(|volume| volume.claim.is_none());
            found.extend(own.filter_map(|volume| self.of_pod_volume(&policies, pod, volume)));
        }
        found.sort_by(|a, b| (&a.claim, &a.pod, &a.volume).cmp(&(&b.claim, &b.pod, &b.volume)));
        found
    }

    /// Whether a namespace is on its way out, or gone.
    pub fn is_going(&self, namespace: &str) -> bool {
        self.namespaces
            .get(&namespace.into())
            .is_none_or(|facts| facts.terminating)
    }

    fn of_claim(&self, policies: &[Arc<Policy>], key: &Key, claim: &ClaimFacts) -> Situation {
        let plan = self.plans.get(key);
        // Every use by a pod, or a stand-in for a claim that no pod uses.
        let mut uses: Vec<(&PodFacts, &PodVolume)> = self
            .pods_using(key)
            .flat_map(|pod| pod.volumes.iter().map(move |volume| (pod, volume)))
            .filter(|(_, volume)| volume.claim.as_deref() == Some(&claim.name))
            .collect();
        uses.sort_by(|a, b| (&a.0.name, &a.1.name).cmp(&(&b.0.name, &b.1.name)));
        let view = self.claim_view(key);
        let stand_in = PodVolume {
            name: claim.name.clone(),
            kind: VolumeType::PersistentVolumeClaim,
            claim: Some(claim.name.clone()),
            csi_driver: None,
            mounted: true,
            device: false,
        };
        let wants = |policy: &&Arc<Policy>| match uses.is_empty() {
            true => select::choose(policy, &stand_in, view).is_backup(),
            false => uses.iter().any(|(pod, volume)| {
                select::selects_pod(policy, pod) && select::choose(policy, volume, view).is_backup()
            }),
        };
        let wanting: Vec<&Arc<Policy>> = policies.iter().filter(wants).collect();
        let enforced: Vec<&Arc<Policy>> = wanting
            .iter()
            .copied()
            .filter(|policy| policy.spec.mode == Mode::Enforce)
            .collect();
        let governor = best(self.governors(&enforced));
        let carrier_pod = plan.and_then(|plan| plan.carrier.as_ref());
        let shown = carrier_pod
            .map(|(pod, volume)| (pod.to_string(), volume.to_string()))
            .or_else(|| {
                uses.first()
                    .map(|(pod, volume)| (pod.name.to_string(), volume.name.to_string()))
            });
        let exemption = self.exemption_of_claim(namespace_of(key), claim, &uses);
        let volume = uses.first().map_or(&stand_in, |(_, volume)| *volume);
        let (intent, detail) = self.intent(
            policies,
            exemption,
            &wanting,
            governor.as_ref(),
            volume,
            view,
        );
        Situation {
            claim: Some(claim.name.to_string()),
            lineage: claim.lineage.to_string(),
            intent,
            carrier: self.carrier_of_claim(key, claim, carrier_pod, &uses, governor.as_ref()),
            governor,
            wanted_by: wanting.iter().map(|policy| policy.id.clone()).collect(),
            pod: shown.as_ref().map(|(pod, _)| pod.clone()),
            volume: shown.map(|(_, volume)| volume),
            detail,
        }
    }

    fn exemption_of_claim(
        &self,
        namespace: &str,
        claim: &ClaimFacts,
        uses: &[(&PodFacts, &PodVolume)],
    ) -> Option<Exemption> {
        let namespace = self.namespaces.get(&namespace.into())?;
        if let Some(exempt) = claim.exempt.clone() {
            return Some(Exemption::Claim(exempt));
        }
        if uses.is_empty() {
            return namespace.exempt.clone().map(Exemption::Namespace);
        }
        // Exempt on one pod is not exempt where another carries it.
        let mut each = uses
            .iter()
            .map(|(pod, volume)| select::exemption(namespace, pod, volume, None));
        let first = each.next()??;
        each.all(|exemption| exemption.is_some()).then_some(first)
    }

    fn carrier_of_claim(
        &self,
        key: &Key,
        claim: &ClaimFacts,
        carrier: Option<&(Box<str>, Box<str>)>,
        uses: &[(&PodFacts, &PodVolume)],
        governor: Option<&Governor>,
    ) -> Carrier {
        if let Some((pod, volume)) = carrier {
            let opt_in = governor.is_none_or(|governor| !governor.policy.spec.template.opt_out());
            let pod = self.pods.get(&Key::namespaced(key.ns(), &**pod));
            let refused =
                pod.is_some_and(|pod| opt_in && annotate::refuses(&pod.backup_volumes, volume));
            return if refused {
                Carrier::Refused
            } else {
                Carrier::Elected
            };
        }
        let view = self.claim_view(key);
        let blocked = uses
            .iter()
            .find_map(|(_, volume)| select::eligible(volume, view).err());
        let running = uses.iter().any(|(pod, _)| pod.phase == PodPhase::Running);
        Carrier::None(match blocked {
            _ if claim.block => Reason::BlockDevice,
            _ if view
                .and_then(|view| view.volume)
                .is_some_and(|volume| volume.host_path) =>
            {
                Reason::HostPathVolume
            }
            Some(why) => why.into(),
            None if claim.volume.is_empty() && !running => Reason::ClaimNotBound,
            None if uses.is_empty() => Reason::NotMounted,
            None => Reason::NoRunningPod,
        })
    }

    /// A volume without a claim, if a policy wants it.
    fn of_pod_volume(
        &self,
        policies: &[Arc<Policy>],
        pod: &PodFacts,
        volume: &PodVolume,
    ) -> Option<Situation> {
        let wants = |policy: &&Arc<Policy>| {
            select::selects_pod(policy, pod) && select::choose(policy, volume, None).is_backup()
        };
        let wanting: Vec<&Arc<Policy>> = policies.iter().filter(wants).collect();
        if wanting.is_empty() {
            return None;
        }
        let enforced: Vec<&Arc<Policy>> = wanting
            .iter()
            .copied()
            .filter(|policy| policy.spec.mode == Mode::Enforce)
            .collect();
        let governor = best(self.governors(&enforced));
        let exemption = select::exemption(self.namespaces.get(&pod.namespace)?, pod, volume, None);
        let (intent, detail) = self.intent(
            policies,
            exemption,
            &wanting,
            governor.as_ref(),
            volume,
            None,
        );
        let opt_in = governor
            .as_ref()
            .is_none_or(|g| !g.policy.spec.template.opt_out());
        let carrier = match select::eligible(volume, None) {
            Err(why) => Carrier::None(why.into()),
            Ok(()) if !pod.is_running() => Carrier::None(Reason::NoRunningPod),
            Ok(()) if opt_in && annotate::refuses(&pod.backup_volumes, &volume.name) => {
                Carrier::Refused
            }
            Ok(()) => Carrier::Elected,
        };
        Some(Situation {
            claim: None,
            pod: Some(pod.name.to_string()),
            volume: Some(volume.name.to_string()),
            lineage: pod_lineage(&pod.namespace, &pod.name, &volume.name),
            intent,
            carrier,
            governor,
            wanted_by: wanting.iter().map(|policy| policy.id.clone()).collect(),
            detail,
        })
    }

    fn intent(
        &self,
        policies: &[Arc<Policy>],
        exemption: Option<Exemption>,
        wanting: &[&Arc<Policy>],
        governor: Option<&Governor>,
        volume: &PodVolume,
        view: Option<ClaimView<'_>>,
    ) -> (Intent, Option<String>) {
        if let Some(exemption) = exemption {
            return exempt(exemption);
        }
        if let Some(governor) = governor {
            return (
                Intent::Wanted {
                    rpo: governor.policy.spec.rpo(),
                },
                None,
            );
        }
        if !wanting.is_empty() {
            return (Intent::Previewed, None);
        }
        let skipped =
            policies
                .iter()
                .find_map(|policy| match select::choose(policy, volume, view) {
                    select::Choice::Skip(Some(rule)) => {
                        Some(format!("rule {rule} of {}", policy.id))
                    }
                    _ => None,
                });
        match skipped {
            Some(rule) => (Intent::Exempt(Reason::SkippedByRule), Some(rule)),
            None => (Intent::Unselected, None),
        }
    }
}

fn namespace_of(key: &Key) -> &str {
    key.ns()
}

fn exempt(exemption: Exemption) -> (Intent, Option<String>) {
    let (object, exempt) = match exemption {
        Exemption::PodExcludes => return (Intent::Exempt(Reason::PodExcludes), None),
        Exemption::Claim(exempt) => ("claim", exempt),
        Exemption::Pod(exempt) => ("pod", exempt),
        Exemption::Namespace(exempt) => ("namespace", exempt),
    };
    match exempt {
        Exempt::ExcludeFromBackup => (
            Intent::Exempt(Reason::ExcludeFromBackup),
            Some(format!("on the {object}")),
        ),
        Exempt::Asked { reason } => {
            let reason = reason.as_deref().unwrap_or("no reason given");
            (
                Intent::Exempt(Reason::ExemptByMetadata),
                Some(format!("on the {object}: {reason}")),
            )
        }
    }
}

/// Where several locations have a governor: the one that would govern if there were only one location.
fn best(governors: Vec<Governor>) -> Option<Governor> {
    governors
        .into_iter()
        .max_by(|a, b| jackline_policy::govern::compare(&a.policy, &b.policy))
}

#[cfg(test)]
mod tests {
    use jackline_policy::spec::PolicyParts;

    use super::super::state::ClaimPlan;
    use super::*;

    #[test]
    fn a_backup_of_a_policy_that_was_given_another_location_since_moves_what_the_policy_governs() {
        let id = PolicyId::cluster("all");
        let policy = Arc::new(Policy {
            uid: "u".to_owned(),
            created: jiff::Timestamp::UNIX_EPOCH,
            spec: PolicyParts::default().check(id.kind).unwrap(),
            id: id.clone(),
        });
        let mut state = State::default();
        state.set_policy(&id, Some(policy.clone()));
        let plan = |location: &str| ClaimPlan {
            governors: vec![Governor {
                location: location.into(),
                policy: policy.clone(),
            }],
            carrier: Some(("web-0".into(), "data".into())),
        };
        let claim = Key::namespaced("shop", "data");
        for location in ["here", "there"] {
            state.set_default_location(location);
            state.plans.insert(claim.clone(), plan(location));
            let governed = state.governed(&id).unwrap();
            let pods: Vec<_> = governed.iter().map(|volume| &*volume.pod).collect();
            assert_eq!(pods, ["web-0"]);
        }
        assert_eq!(state.governed(&PolicyId::cluster("other")), None);
    }
}
