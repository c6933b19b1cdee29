//! Pods that are frozen together. A claim is read through one pod, and every pod with hooks that mounts it may write to it: all of them are
//! frozen, then read, then thawed, as Velero does with its ItemBlocks since 1.15.

use std::{collections::BTreeSet, time::Duration};

use jackline_policy::backup::{block::connected, object::ObjectRef};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::{
        holds::Held,
        hooks::{self, PodHooks},
        job::Job,
        outcome::{self, Outcome},
        owed::{self, Debt, Mark},
    },
    Chosen, Work, at, pod_ref,
};
use crate::collect::PodFacts;

/// A pod with hooks or with volumes to move.
pub(super) struct Member<'a> {
    pub(super) pod: &'a PodFacts,
    pub(super) hooks: PodHooks,
    pub(super) chosen: Vec<Chosen>,
}

/// What is still to be done for a pod.
struct Part<'a> {
    pod: &'a PodFacts,
    hooks: &'a PodHooks,
    chosen: Vec<&'a Chosen>,
}

/// How a pod stands before its pre hooks.
enum Stand {
    /// They may run.
    Free,
    /// There is no such pod any more.
    Gone,
    /// Why they must not run.
    Unable(String),
}

/// How long it takes at least to find out whether something is owed.
const LOOK: Duration = Duration::from_secs(10);

/// Until when it is waited for who pays what is owed: as long as the volumes may take, or as long as one of them may stand still.
fn paid_by(deadline: Option<Instant>, now: Instant, patience: Duration) -> Instant {
    deadline.map_or(now + patience, |deadline| deadline.max(now + LOOK))
}

/// Groups pods by claims that are read and that they share.
pub(super) fn together(members: Vec<Member<'_>>) -> Vec<Vec<Member<'_>>> {
    let reads = |member: &Member<'_>| -> BTreeSet<(String, String)> {
        let claims = member.chosen.iter().flat_map(|(one, _)| one.claim.clone());
        let namespace = &member.pod.volumes.namespace;
        claims.map(|claim| (namespace.clone(), claim)).collect()
    };
    let read: BTreeSet<_> = members.iter().flat_map(reads).collect();
    let keys: Vec<_> = members
        .iter()
        .map(|member| {
            let mut keys = reads(member);
            if !member.hooks.is_empty() {
                let volumes = &member.pod.volumes;
                let mounted = volumes.volumes.iter().flat_map(|one| one.claim.clone());
                let mounted = mounted.map(|claim| (volumes.namespace.clone(), claim));
                keys.extend(mounted.filter(|claim| read.contains(claim)));
            }
            keys
        })
        .collect();
    let mut members: Vec<Option<Member<'_>>> = members.into_iter().map(Some).collect();
    let mut take = |index: usize| members.get_mut(index)?.take();
    let groups = connected(&keys).into_iter();
    groups
        .map(|group| group.into_iter().filter_map(&mut take).collect())
        .collect()
}

impl Work<'_> {
    /// The way of pods that are frozen together.
    pub(super) async fn block(
        &self,
        members: Vec<Member<'_>>,
        verdict: mpsc::UnboundedSender<Option<ObjectRef>>,
    ) {
        for Member { pod, .. } in &members {
            for warning in &pod.hook_warnings {
                self.log.warning(warning, &hooks::fields(pod));
            }
        }
        let tell = |part: &Part<'_>, forbidden: bool| {
            if !part.hooks.is_empty() {
                // The receiver counts to the number of pods with hooks and no further.
                let _ = verdict.send(forbidden.then(|| pod_ref(part.pod)));
            }
        };
        // What was begun before a restart is only waited for; whoever leads pays what is owed for it.
        let (begun, fresh): (Vec<_>, Vec<_>) = members
            .iter()
            .map(|Member { pod, hooks, chosen }| {
                let known = |chosen: &&Chosen| self.known(pod, &chosen.0).is_some();
                let (begun, fresh) = chosen.iter().partition(known);
                let part = |chosen| Part { pod, hooks, chosen };
                (part(begun), part(fresh))
            })
            .unzip();
        let any = |parts: &[Part<'_>]| parts.iter().any(|part| !part.chosen.is_empty());
        let (some_begun, some_fresh) = (any(&begun), any(&fresh));
        let resumed = some_begun && !some_fresh;
        let mut parts = Vec::new();
        let mut owed = Vec::new();
        for part in fresh {
            let kept = outcome::of(self.job.backup, &part.pod.volumes.uid);
            let whole = |kept: &Outcome| resumed || kept.forbidden || !some_fresh;
            match kept {
                Some(kept) if kept.over && whole(&kept) => {
                    tell(&part, kept.forbidden);
                    self.recall(part.pod, kept);
                }
                kept if resumed => {
                    tell(&part, kept.as_ref().is_some_and(|kept| kept.forbidden));
                    if kept.is_some() || !part.hooks.is_empty() {
                        owed.push(part.pod);
                    }
                }
                _ => parts.push(part),
            }
        }
        let waited = begun.iter().map(|part| self.all(part.pod, &part.chosen));
        let waited = futures::future::join_all(waited);
        tokio::join!(waited, self.frozen(parts, some_begun, &tell));
        let patience = self.job.context.args.volume_progress_timeout.to_std();
        let late = paid_by(self.deadline, Instant::now(), patience);
        for pod in owed {
            let paid = owed::paid(self.job.context, pod, self.job.backup);
            if tokio::time::timeout_at(late, paid).await.is_err() {
                self.log.warning(
                    "Post hooks that are owed to a pod have not ended in time",
                    &hooks::fields(pod),
                );
            }
            self.recall_now(pod).await;
        }
    }

    /// Reads a claim through another pod than was meant, with the hooks of all that mount it: `others` besides that one.
    pub(super) async fn instead(&self, next: &PodFacts, others: &[PodFacts], chosen: Chosen) {
        let spec = self.job.backup.spec.hooks.as_ref();
        let hooks = hooks::of(next, spec);
        let forbidden: BTreeSet<String> = {
            let outcomes = self.outcomes.lock();
            let forbidden = outcomes.iter().filter(|(_, outcome)| outcome.forbidden);
            forbidden.map(|(pod, _)| pod.clone()).collect()
        };
        let others = others
            .iter()
            .filter(|pod| !forbidden.contains(&pod.volumes.uid));
        let others: Vec<_> = others.map(|pod| (pod, hooks::of(pod, spec))).collect();
        let others = others.iter().filter(|(_, hooks)| !hooks.is_empty());
        let mut parts = vec![Part {
            pod: next,
            hooks: &hooks,
            chosen: vec![&chosen],
        }];
        parts.extend(others.map(|(pod, hooks)| Part {
            pod,
            hooks,
            chosen: Vec::new(),
        }));
        self.frozen(parts, false, &|_, _| ()).await;
    }

    /// Hooks of all, volumes of all, hooks of all. `begun`: hooks have run for other volumes of these pods. `tell` learns whether a pod must
    /// not be stored, before the volumes are waited for.
    async fn frozen(
        &self,
        parts: Vec<Part<'_>>,
        begun: bool,
        tell: &(dyn Fn(&Part<'_>, bool) + Sync),
    ) {
        if parts.iter().all(|part| part.hooks.is_empty()) {
            self.unhooked(&parts).await;
            return;
        }
        let (context, log, token) = (self.job.context, self.log, self.job.token);
        let marked = Mutex::default();
        let alone = tokio::select! {
            alone = self.alone(&parts, &marked) => Some(alone),
            () = at(self.deadline) => None,
        };
        if alone.is_none() {
            self.unmark_all(&marked).await;
        }
        let (held, stands) = alone.unwrap_or_else(|| {
            let why = "its pod is in use by another backup";
            let unable = |_| Stand::Unable(why.to_owned());
            (Vec::new(), parts.iter().map(unable).collect())
        });
        let mut free = Vec::new();
        // Those that are read when nothing is held: another pod may carry their claims.
        let mut later = Vec::new();
        for (part, stand) in parts.into_iter().zip(stands) {
            if begun && !part.hooks.is_empty() {
                self.recall_now(part.pod).await;
            }
            match stand {
                Stand::Free => free.push(part),
                Stand::Gone => {
                    tell(&part, false);
                    later.push(part);
                }
                Stand::Unable(why) => {
                    let outcome = hooks::not_run(part.pod, part.hooks, &why, log);
                    let forbidden = outcome.forbidden;
                    self.keep(part.pod, outcome).await;
                    tell(&part, forbidden);
                    if !forbidden {
                        later.push(part);
                    }
                }
            }
        }
        let mut read = Vec::new();
        let mut undo = Vec::new();
        for part in &free {
            let hooks = part.hooks;
            if hooks.is_empty() {
                read.push(part);
                continue;
            }
            let mut before = hooks::run(context, token, part.pod, &hooks.pre, log).await;
            let forbidden = before.forbidden;
            let owed = !hooks.post.is_empty() && (!forbidden || before.effect);
            before.over = !owed;
            self.keep(part.pod, before).await;
            tell(part, forbidden);
            if owed {
                undo.push(part);
            }
            if !forbidden {
                read.push(part);
            }
        }
        let reads = read.into_iter().map(async |part| {
            let gone = self.each(part.pod, &part.chosen).await;
            gone.into_iter().map(|gone| (part.pod, gone))
        });
        let reads = futures::future::join_all(reads).await;
        let gone: Vec<_> = reads.into_iter().flatten().collect();
        if !marked.lock().is_empty() && token.check().is_err() {
            // Whoever leads now finds the marks.
            return;
        }
        for part in undo {
            // A pod that has gone is not frozen.
            let uid = &part.pod.volumes.uid;
            let doubtful = gone.iter().any(|(pod, _)| &pod.volumes.uid == uid);
            if doubtful && !owed::is_there(context, part.pod).await.unwrap_or(true) {
                continue;
            }
            let mut after = hooks::run(context, token, part.pod, &part.hooks.post, log).await;
            after.over = true;
            self.keep(part.pod, after).await;
        }
        self.unmark_all(&marked).await;
        drop(held);
        let instead = gone.into_iter().map(|(pod, gone)| self.succeed(pod, gone));
        tokio::join!(futures::future::join_all(instead), self.unhooked(&later));
    }

    async fn unhooked(&self, parts: &[Part<'_>]) {
        let ways = parts.iter().map(|part| self.all(part.pod, &part.chosen));
        futures::future::join_all(ways).await;
    }

    /// Takes the marks off pods whose post hooks have run, or will not.
    async fn unmark_all(&self, marked: &Mutex<Vec<&PodFacts>>) {
        let Job { context, token, .. } = self.job;
        let pods = std::mem::take(&mut *marked.lock());
        for PodFacts { volumes: pod, .. } in pods {
            let target = (pod.namespace.as_str(), pod.name.as_str());
            let backup = Some(self.uid.as_str());
            if let Err(error) = owed::clear(context, token, target, &pod.uid, backup).await {
                // The mark is found by who looks for marks, and the commands run once more.
                tracing::warn!(%error, pod = ?target, "the mark of owed post hooks stays");
            }
        }
    }

    /// Whether one of several pods is marked for another backup. For one alone its mark tells that.
    async fn is_busy(&self, parts: &[Part<'_>]) -> bool {
        let hooked = parts.iter().filter(|part| !part.hooks.is_empty());
        let hooked: Vec<&PodFacts> = hooked.map(|part| part.pod).collect();
        for pod in hooked.iter().filter(|_| hooked.len() > 1) {
            if owed::is_owed(self.job.context, pod).await {
                return true;
            }
        }
        false
    }

    /// Pods and their claims for this backup alone, and pods marked where post hooks will be owed; `marked` are those, until it is over.
    /// Nothing is held while one of them is marked for another backup.
    async fn alone<'p>(
        &self,
        parts: &[Part<'p>],
        marked: &Mutex<Vec<&'p PodFacts>>,
    ) -> (Vec<Held>, Vec<Stand>) {
        let Job { context, token, .. } = self.job;
        let reading = parts.iter().filter(|part| !part.chosen.is_empty());
        let reading: Vec<String> = reading.map(|part| part.pod.volumes.uid.clone()).collect();
        loop {
            let held = self.hold(parts).await;
            let mut stands = Vec::new();
            let mut busy = self.is_busy(parts).await;
            for Part { pod, hooks, .. } in parts {
                if busy {
                    break;
                }
                if hooks.is_empty() {
                    stands.push(Stand::Free);
                    continue;
                }
                let debt = Debt::new(self.job.backup, &hooks.post, &reading);
                stands.push(match owed::mark(context, token, pod, &debt).await {
                    Ok(Mark::Done) => {
                        if !hooks.post.is_empty() {
                            marked.lock().push(*pod);
                        }
                        Stand::Free
                    }
                    Ok(Mark::Gone) => Stand::Gone,
                    Ok(Mark::Busy) => {
                        busy = true;
                        continue;
                    }
                    Err(why) => Stand::Unable(why),
                });
            }
            if !busy {
                return (held, stands);
            }
            self.unmark_all(marked).await;
            drop(held);
            tokio::time::sleep(owed::AGAIN).await;
        }
    }

    /// Pods and their claims for this backup alone. Claims in the order of their UIDs, and then pods in that of theirs: nobody waits in a
    /// circle, and what is owed to a pod can be paid while a claim is waited for.
    async fn hold(&self, parts: &[Part<'_>]) -> Vec<Held> {
        let chosen = parts.iter().flat_map(|part| &part.chosen);
        let claims: BTreeSet<&str> = chosen
            .filter_map(|(_, claim)| Some(claim.as_ref()?.uid.as_str()))
            .collect();
        let hooked = parts.iter().filter(|part| !part.hooks.is_empty());
        let pods: BTreeSet<&str> = hooked.map(|part| part.pod.volumes.uid.as_str()).collect();
        let mut held = Vec::new();
        for uid in claims {
            held.push(self.claim(uid).await);
        }
        for uid in pods {
            held.push(self.job.holds.hold(uid).await);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_not_waited_for_without_end() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        for (deadline, expected) in [
            (None, hour),
            (Some(2 * hour), 2 * hour),
            (Some(Duration::ZERO), LOOK),
        ] {
            let deadline = deadline.map(|after| now + after);
            assert_eq!(paid_by(deadline, now, hour), now + expected);
        }
    }
}
