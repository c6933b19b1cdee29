//! Which volumes a backup moves, and which pod carries each.
//!
//! A claim that several pods mount is moved once. Its carrier is always the same one for the same facts: a running pod that mounts it
//! in a container; among those the one that was asked for, then one whose node has an agent, then the lowest name.

mod why;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde_json::Value;

use super::{
    object::{Skip, claims_of_pod},
    volume_policy::{Action, Source, Volume, VolumePolicies},
};
use crate::{facts::VolumeType, labels::Labels};
use why::{Why, left_out, not_running, not_stored, unusable};

/// Keys of a volume that are no source.
const NAME: &str = "name";
const OPT_IN: &str = "/metadata/annotations/backup.velero.io~1backup-volumes";
const OPT_OUT: &str = "/metadata/annotations/backup.velero.io~1backup-volumes-excludes";
/// How many notes of one sort there are about a pod; what follows is counted in one more. Whoever makes a pod decides how many volumes it
/// has, and whoever annotates it how many it names.
const FEW: usize = 10;
/// Longest name that a volume can have, in bytes.
const NAME_LENGTH: usize = 63;
/// What is said of names that are no volume's.
const UNKNOWN: &str = "no volumes of these names are found in it";

/// A pod, as far as its volumes are concerned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodVolumes {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// `status.phase`.
    pub phase: String,
    /// The opt-in annotation, if there is one.
    pub opt_in: Option<Named>,
    /// Its volumes that the opt-out annotation names.
    pub opt_out: BTreeSet<String>,
    /// Its volumes.
    pub volumes: Vec<PodVolume>,
}

/// Names that were given for volumes of a pod, as far as they matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Those of its volumes, each once.
    pub volumes: Vec<String>,
    /// How many others there are.
    pub unknown: usize,
    /// The first of them.
    pub first: Vec<String>,
}

impl Named {
    fn new<'a>(names: impl IntoIterator<Item = &'a str>, volumes: &[PodVolume]) -> Self {
        let known: HashSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let mut seen = HashSet::new();
        let mut named = Self::default();
        for name in names.into_iter().filter(|name| seen.insert(*name)) {
            if known.contains(name) {
                named.volumes.push(name.to_owned());
                continue;
            }
            named.unknown += 1;
            if named.first.len() < FEW {
                let (shown, _) = name.split_at(name.floor_char_boundary(NAME_LENGTH));
                named.first.push(shown.to_owned());
            }
        }
        named
    }
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodVolume {
    /// Its name in the pod.
    pub name: String,
    /// What it is made of.
    pub kind: VolumeType,
    /// The same, as volume policies see it.
    pub source: Source,
    /// The claim, if it is made of one.
    pub claim: Option<String>,
    /// Whether a container (not an init container) mounts it as a file system.
    pub mounted: bool,
    /// Whether a container uses it as a raw device.
    pub device: bool,
}

impl PodVolumes {
    /// Reads a pod.
    pub fn of(pod: &Value) -> Self {
        let text = |pointer: &str| {
            pod.pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let used = |key: &str| -> BTreeSet<&str> {
            let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
            let uses = containers
                .into_iter()
                .flatten()
                .filter_map(|c| c.get(key)?.as_array());
            uses.flatten()
                .filter_map(|used| used.get("name")?.as_str())
                .collect()
        };
        let (mounts, devices) = (used("volumeMounts"), used("volumeDevices"));
        let claims: BTreeMap<String, String> = claims_of_pod(pod).into_iter().collect();
        let volume = |volume: &Value| {
            let name = volume.get(NAME)?.as_str()?.to_owned();
            let kind = volume.as_object()?.keys().find(|key| *key != NAME);
            Some(PodVolume {
                // A volume without a source is an emptyDir.
                kind: VolumeType::of(kind.map_or("emptyDir", String::as_str)),
                source: Source::of(volume),
                claim: claims.get(&name).cloned(),
                mounted: mounts.contains(name.as_str()),
                device: devices.contains(name.as_str()),
                name,
            })
        };
        let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
        let volumes: Vec<PodVolume> = volumes.into_iter().flatten().filter_map(volume).collect();
        let named = |pointer: &str| {
            let names = pod.pointer(pointer)?.as_str()?;
            Some(Named::new(split(names), &volumes))
        };
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            node: Some(text("/spec/nodeName")).filter(|node| !node.is_empty()),
            phase: text("/status/phase"),
            opt_in: named(OPT_IN),
            opt_out: named(OPT_OUT)
                .unwrap_or_default()
                .volumes
                .into_iter()
                .collect(),
            volumes,
        }
    }

    fn is_running(&self) -> bool {
        self.phase == "Running"
    }

    fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

impl PodVolume {
    fn is_eligible(&self) -> bool {
        !matches!(self.kind, VolumeType::Never(_)) && !self.name.starts_with("default-token")
    }
}

/// What is known of a claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaimFacts {
    /// Its UID.
    pub uid: String,
    /// Its labels.
    pub labels: Labels,
    /// The volume it is bound to.
    pub volume: Option<String>,
    /// What that volume is, where it is known.
    pub bound: Option<Volume>,
    /// The claim that its data came from, when a restore made it.
    pub ancestor: Option<String>,
    /// Why the claim itself is not stored, if it is not.
    pub left_out: Option<Skip>,
}

impl ClaimFacts {
    /// Whether its volume is a directory of the host, which no agent may read.
    fn is_on_host_path(&self) -> bool {
        let bound = self.bound.as_ref();
        bound.is_some_and(|volume| volume.source == Source::Other("hostPath"))
    }
}

/// How the volumes are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Those that pods' annotations name.
    OptIn,
    /// All that can be, but those that pods' annotations exclude.
    OptOut,
    /// Those that a policy governs.
    Governed(Vec<Wanted>),
}

/// A volume that a policy governs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod that was elected.
    pub pod: String,
    /// The volume's name in it.
    pub volume: String,
    /// The claim behind it.
    pub claim: Option<String>,
}

/// How serious a note is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth writing down.
    Info,
    /// Somebody should look.
    Warning,
    /// The backup does not hold what it should.
    Error,
}

/// Something to say about a volume that is not moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// How serious it is.
    pub level: Level,
    /// Namespace of pod or claim.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The volume's name in the pod; empty where it is about several.
    pub volume: String,
    /// The claim, if there is one.
    pub claim: Option<String>,
    /// What there is to say.
    pub message: String,
}

/// A volume to move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// Index of the pod that carries it.
    pub pod: usize,
    /// The volume's name in that pod.
    pub volume: String,
    /// The claim behind it.
    pub claim: Option<String>,
}

/// What was decided about all volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// To be moved.
    pub volumes: Vec<Selected>,
    /// Not to be moved although wanted, and what else there is to say.
    pub notes: Vec<Note>,
}

/// What Velero logs of a pod whose claim another one carries.
const ELSEWHERE: &str = "Pod volume uses a persistent volume claim which has already been backed up from another pod, skipping.";

/// Chooses the volumes and their carriers. What `policies` say of a volume comes before `mode`. `claim` tells what is known of a claim
/// (`None`: it does not exist), `claims_stored` whether the backup's filters let claims in, `agent` whether an agent runs on a node.
pub fn select(
    pods: &[&PodVolumes],
    mode: &Mode,
    policies: &VolumePolicies,
    claims_stored: bool,
    claim: &dyn Fn(&str, &str) -> Option<ClaimFacts>,
    agent: &dyn Fn(&str) -> bool,
) -> Selection {
    let mut users: HashMap<Claim<'_>, Vec<Use<'_>>> = HashMap::new();
    for (index, pod) in pods.iter().enumerate() {
        for volume in &pod.volumes {
            if let Some(claim) = &volume.claim {
                let users = users.entry((&pod.namespace, claim)).or_default();
                users.push((index, volume));
            }
        }
    }
    let mut selector = Selector {
        pods,
        policies,
        claim,
        agent,
        users,
        told: BTreeMap::new(),
        selection: Selection::default(),
    };
    let mut claims = BTreeMap::new();
    for (pod, volume) in selector.wanted(mode, claims_stored, &mut claims) {
        selector.single(pod, volume);
    }
    for ((namespace, name), asked) in claims {
        selector.claim(namespace, name, &asked, mode);
    }
    selector.sum_up();
    let order = |selected: &Selected| {
        let pod = &pods[selected.pod];
        (
            pod.namespace.clone(),
            pod.name.clone(),
            selected.volume.clone(),
        )
    };
    selector.selection.volumes.sort_by_cached_key(order);
    selector.selection
}

/// Namespace and name of a claim.
type Claim<'a> = (&'a str, &'a str);
/// The index of a pod, and one of its volumes.
type Use<'a> = (usize, &'a PodVolume);
/// The volumes that were asked for, by the claim that they are.
type Asked<'a> = BTreeMap<Claim<'a>, Vec<Use<'a>>>;

struct Selector<'a> {
    pods: &'a [&'a PodVolumes],
    policies: &'a VolumePolicies,
    claim: &'a dyn Fn(&str, &str) -> Option<ClaimFacts>,
    agent: &'a dyn Fn(&str) -> bool,
    /// Every volume of every pod that is a claim, by that.
    users: HashMap<Claim<'a>, Vec<Use<'a>>>,
    /// How many notes of a sort there are about a pod.
    told: BTreeMap<(usize, Level, &'static str), usize>,
    selection: Selection,
}

impl<'a> Selector<'a> {
    /// Says something about a volume of a pod, unless enough of that sort was said about the pod.
    fn note(&mut self, index: usize, volume: &str, claim: Option<&str>, why: Why) {
        let told = self.told.entry((index, why.level, why.sort)).or_default();
        *told += 1;
        if *told > FEW {
            return;
        }
        let pod = self.pods[index];
        self.selection.notes.push(Note {
            level: why.level,
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            volume: volume.to_owned(),
            claim: claim.map(str::to_owned),
            message: why.message,
        });
    }

    /// Says how much was not said.
    fn sum_up(&mut self) {
        for (&(index, level, sort), told) in &self.told {
            let Some(more) = told.checked_sub(FEW).filter(|more| *more > 0) else {
                continue;
            };
            let pod = self.pods[index];
            self.selection.notes.push(Note {
                level,
                namespace: pod.namespace.clone(),
                pod: pod.name.clone(),
                volume: String::new(),
                claim: None,
                message: format!(
                    "Skip {more} more volumes of pod {}/{}: {sort}",
                    pod.namespace, pod.name
                ),
            });
        }
    }

    /// What the policies do with a volume of a pod, or with a claim, and which of them says so.
    fn action(
        &self,
        namespace: &str,
        claim: Option<&str>,
        source: &Source,
    ) -> Option<(usize, Action)> {
        if self.policies.is_empty() {
            return None;
        }
        match claim {
            // As in Velero, an ephemeral volume is of that type, and not what its claim is bound to.
            Some(claim) if *source == Source::Unknown => {
                let facts = (self.claim)(namespace, claim)?;
                let bound = facts.bound.unwrap_or_default();
                self.policies.action(&bound, &facts.labels)
            }
            _ => {
                let volume = Volume {
                    source: source.clone(),
                    ..Volume::default()
                };
                self.policies.action(&volume, &Labels::default())
            }
        }
    }

    /// The volume that policies would have to look at, and that is not known.
    fn unread(&self, namespace: &str, claim: Option<&str>, source: &Source) -> Option<String> {
        if self.policies.is_empty() || *source != Source::Unknown {
            return None;
        }
        let facts = (self.claim)(namespace, claim?)?;
        facts.volume.filter(|_| facts.bound.is_none())
    }

    /// The wanted volumes without a claim; those with one go into `claims`.
    fn wanted(
        &mut self,
        mode: &'a Mode,
        claims_stored: bool,
        claims: &mut Asked<'a>,
    ) -> Vec<Use<'a>> {
        let mut singles = Vec::new();
        for (index, pod) in self.pods.iter().enumerate() {
            for volume in self.asked(index, mode) {
                let name = &volume.name;
                if !volume.is_eligible() {
                    let message = format!(
                        "volume {name} is of type {}, which is never backed up",
                        volume.kind
                    );
                    let why = Why::warning("their types are never backed up", message);
                    self.note(index, name, None, why);
                    continue;
                }
                match &volume.claim {
                    Some(claim) if !claims_stored => {
                        let sort = "claims are not part of this backup";
                        self.note(index, name, Some(claim), Why::info(sort, sort.to_owned()));
                    }
                    Some(claim) => {
                        let asked = claims.entry((&pod.namespace, claim)).or_default();
                        asked.push((index, volume));
                    }
                    None => singles.push((index, volume)),
                }
            }
        }
        if let Mode::Governed(wanted) = mode {
            self.gone(wanted, claims_stored, claims);
        }
        singles
    }

    /// The volumes of a pod about which there is something to decide: those that are wanted, and those that the policies decide about.
    fn asked(&mut self, index: usize, mode: &Mode) -> Vec<&'a PodVolume> {
        let pod = self.pods[index];
        let named = self.named(pod, mode);
        for name in &named.first {
            let message = format!(
                "No volume named {name} found in pod {}/{}, skipping",
                pod.namespace, pod.name
            );
            self.note(index, name, None, Why::warning(UNKNOWN, message));
        }
        if named.unknown > named.first.len() {
            let told = (index, Level::Warning, UNKNOWN);
            self.told.insert(told, named.unknown);
        }
        let volumes: HashMap<&str, &'a PodVolume> = pod
            .volumes
            .iter()
            .map(|volume| (volume.name.as_str(), volume))
            .collect();
        let mut names: HashSet<&str> = named.volumes.iter().map(String::as_str).collect();
        let wanted = named.volumes.iter();
        let mut asked: Vec<_> = wanted
            .filter_map(|name| volumes.get(name.as_str()).copied())
            .collect();
        for volume in pod.volumes.iter().filter(|volume| volume.is_eligible()) {
            let of = (volume.claim.as_deref(), &volume.source);
            let decided = self.action(&pod.namespace, of.0, of.1).is_some()
                || self.unread(&pod.namespace, of.0, of.1).is_some();
            if decided && names.insert(&volume.name) {
                asked.push(volume);
            }
        }
        asked
    }

    /// The volumes of a pod that are wanted.
    fn named(&self, pod: &PodVolumes, mode: &Mode) -> Named {
        match mode {
            Mode::OptIn => pod.opt_in.clone().unwrap_or_default(),
            Mode::OptOut => {
                let eligible = pod
                    .volumes
                    .iter()
                    .filter(|volume| volume.is_eligible() && !pod.opt_out.contains(&volume.name));
                Named {
                    volumes: eligible.map(|volume| volume.name.clone()).collect(),
                    ..Named::default()
                }
            }
            Mode::Governed(wanted) => {
                let of_pod = wanted
                    .iter()
                    .filter(|wanted| wanted.namespace == pod.namespace && wanted.pod == pod.name);
                Named::new(of_pod.map(|wanted| wanted.volume.as_str()), &pod.volumes)
            }
        }
    }

    /// Volumes of pods that are not there any more: a claim may have another pod.
    fn gone(&mut self, wanted: &'a [Wanted], claims_stored: bool, claims: &mut Asked<'a>) {
        for wanted in wanted {
            let is_here =
                |pod: &&PodVolumes| pod.namespace == wanted.namespace && pod.name == wanted.pod;
            if self.pods.iter().any(is_here) {
                continue;
            }
            match &wanted.claim {
                Some(claim) if claims_stored => {
                    claims.entry((&wanted.namespace, claim)).or_default();
                }
                Some(_) => {}
                None => self.selection.notes.push(Note {
                    level: Level::Warning,
                    namespace: wanted.namespace.clone(),
                    pod: wanted.pod.clone(),
                    volume: wanted.volume.clone(),
                    claim: None,
                    message: format!(
                        "pod {}/{} is gone, and volume {} with it",
                        wanted.namespace, wanted.pod, wanted.volume
                    ),
                }),
            }
        }
    }

    /// A volume without a claim lives and dies with its pod.
    fn single(&mut self, index: usize, volume: &PodVolume) {
        let (pod, name) = (self.pods[index], &volume.name);
        let left = self
            .action(&pod.namespace, None, &volume.source)
            .and_then(|decided| left_out(name, decided));
        let problem = left.or_else(|| not_running(pod, name));
        if let Some(why) = problem.or_else(|| unusable(volume)) {
            self.note(index, name, None, why);
            return;
        }
        self.take(index, name, None);
    }

    /// A claim, and the volumes of pods that ask for it.
    fn claim(&mut self, namespace: &str, claim: &str, asked: &[Use<'_>], mode: &Mode) {
        let pods = self.pods;
        let said: HashSet<(usize, &str)> = asked
            .iter()
            .map(|(index, volume)| (*index, volume.name.as_str()))
            .collect();
        let all = self.users.get(&(namespace, claim));
        let all = all.cloned().unwrap_or_default();
        let mut sources = all.iter().map(|(_, volume)| &volume.source);
        let source = sources.find(|source| **source != Source::Unknown);
        let source = source.unwrap_or(&Source::Unknown);
        let decided = self.action(namespace, Some(claim), source);
        let carrier = all
            .iter()
            .filter(|(index, volume)| pods[*index].is_running() && volume.mounted)
            .filter(|(index, volume)| {
                // Who opted out of a volume is not made to carry it, but where a policy asks for it.
                *mode != Mode::OptOut
                    || decided.is_some()
                    || !pods[*index].opt_out.contains(&volume.name)
            })
            .min_by_key(|(index, volume)| {
                let pod = pods[*index];
                let agent = pod.node.as_deref().is_some_and(|node| (self.agent)(node));
                let said = said.contains(&(*index, volume.name.as_str()));
                (!agent, !said, &pod.name, &volume.name)
            });
        // The one to speak of when there is no carrier.
        let spokesman = asked.first().or(all.first()).copied();
        let Some(facts) = (self.claim)(namespace, claim) else {
            if let Some((pod, volume)) = spokesman.filter(|(pod, _)| !pods[*pod].is_over()) {
                let message = format!("persistent volume claim {namespace}/{claim} does not exist");
                let why = Why::error("their persistent volume claims do not exist", message);
                self.note(pod, &volume.name, Some(claim), why);
            }
            return;
        };
        let name = spokesman.map_or(claim, |(_, volume)| &volume.name);
        let unread = || {
            let volume = self.unread(namespace, Some(claim), source)?;
            let message = format!(
                "volume policies cannot tell what to do with persistent volume claim {namespace}/{claim}: its volume {volume} was not found"
            );
            let sort = "volume policies cannot tell what to do with their persistent volume claims";
            Some(Why::error(sort, message))
        };
        let left = facts
            .left_out
            .map(|why| not_stored(namespace, claim, why))
            .or_else(unread)
            .or_else(|| decided.and_then(|decided| left_out(name, decided)));
        let problem = match (carrier, spokesman) {
            _ if left.is_some() => left,
            (Some(_), _) if facts.is_on_host_path() => Some(Why::warning(
                "their persistent volume claims are bound to hostPath volumes, which are not supported",
                format!(
                    "Persistent volume claim {namespace}/{claim} is bound to a hostPath volume, which is not supported, skipping"
                ),
            )),
            (Some(&(index, volume)), _) => {
                self.take(index, &volume.name, Some(claim.to_owned()));
                for (other, volume) in asked {
                    if *other != index && pods[*other].is_running() {
                        let sort = "their persistent volume claims are backed up from another pod";
                        let why = Why::info(sort, ELSEWHERE.to_owned());
                        self.note(*other, &volume.name, Some(claim), why);
                    }
                }
                return;
            }
            (None, Some((index, volume))) => {
                not_running(pods[index], &volume.name).or_else(|| unusable(volume))
            }
            (None, None) => None,
        };
        let why = problem.unwrap_or_else(|| {
            Why::warning(
                "no running pod mounts their persistent volume claims",
                format!(
                    "no running pod mounts persistent volume claim {namespace}/{claim}, skipping"
                ),
            )
        });
        match spokesman {
            Some((index, volume)) => self.note(index, &volume.name, Some(claim), why),
            None => self.selection.notes.push(Note {
                level: why.level,
                namespace: namespace.to_owned(),
                pod: String::new(),
                volume: String::new(),
                claim: Some(claim.to_owned()),
                message: why.message,
            }),
        }
    }

    /// Takes the volume, when an agent can read it.
    fn take(&mut self, index: usize, volume: &str, claim: Option<String>) {
        let pod = self.pods[index];
        let node = pod.node.as_deref().unwrap_or_default();
        if (self.agent)(node) {
            self.selection.volumes.push(Selected {
                pod: index,
                volume: volume.to_owned(),
                claim,
            });
        } else {
            let message = format!("daemonset pod not found in running state in node {node}");
            let why = Why::error(
                "daemonset pod not found in running state in its node",
                message,
            );
            self.note(index, volume, claim.as_deref(), why);
        }
    }
}

#[cfg(test)]
mod tests;
