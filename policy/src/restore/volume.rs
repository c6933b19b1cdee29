//! Which volume's data goes into which pod, and who waits for it.
//!
//! The data of a claim is restored once, through one pod that mounts it (the carrier). **Every** pod that mounts the claim waits,
//! and a workload that would create more such pods is created only when the data is back; otherwise they would write into the
//! volume while it is being filled. Volumes that belong to one pod alone (`emptyDir`, generic ephemeral, inline CSI) are restored
//! into the restored pod of the same name.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::json::{list, name, namespace};

/// A volume's data in a repository: a `PodVolumeBackup` that has a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Namespace of the pod at backup time; names the repository too.
    pub namespace: String,
    pub pod: String,
    pub volume: String,
    /// The claim, where the backup recorded it.
    pub claim: Option<String>,
    /// UID of that claim.
    pub claim_uid: Option<String>,
    /// Id of the snapshot, never empty.
    pub snapshot: String,
    /// When the copy was finished, RFC 3339; of two copies of one claim the later counts.
    pub finished: String,
}

/// A pod of the backup that is going to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub volumes: Vec<PodVolume>,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodVolume {
    pub name: String,
    pub kind: VolumeKind,
}

/// What is behind a pod's volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeKind {
    /// A claim, which other pods can mount too.
    Claim(String),
    /// Storage of this pod alone.
    Private,
    /// Something that is never restored into: the node's or the API's own.
    Fixed,
}

impl Pod {
    /// Reads a pod as stored.
    pub fn read(pod: &Value) -> Self {
        let volumes = list(pod, "/spec/volumes").iter().filter_map(|volume| {
            let name = volume["name"].as_str()?.to_owned();
            let fixed = [
                "hostPath",
                "secret",
                "configMap",
                "projected",
                "downwardAPI",
                "image",
            ];
            let kind = if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                VolumeKind::Claim(claim.to_owned())
            } else if fixed.iter().any(|key| volume.get(*key).is_some()) {
                VolumeKind::Fixed
            } else {
                VolumeKind::Private
            };
            Some(PodVolume { name, kind })
        });
        Self {
            namespace: namespace(pod).unwrap_or_default().to_owned(),
            name: name(pod).to_owned(),
            volumes: volumes.collect(),
        }
    }

    /// Keeps of the volumes those that count: one for each claim, and of the others those that are `wanted`.
    pub fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        let mut claims = BTreeSet::new();
        self.volumes.retain(|volume| match &volume.kind {
            VolumeKind::Claim(claim) => claims.insert(claim.clone()) || wanted(&volume.name),
            VolumeKind::Private | VolumeKind::Fixed => wanted(&volume.name),
        });
        self.volumes.shrink_to_fit();
    }

    fn volume_of_claim(&self, claim: &str) -> Option<&str> {
        self.volumes
            .iter()
            .find(|volume| matches!(&volume.kind, VolumeKind::Claim(name) if name == claim))
            .map(|volume| volume.name.as_str())
    }
}

/// One volume that will be restored. Names are those of the backup, before namespaces are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    pub copy: Copy,
    pub namespace: String,
    /// The pod through which the data is restored, and the volume's name in it.
    pub carrier: (String, String),
    /// The claim, unless the volume is the pod's own.
    pub claim: Option<String>,
    /// Every pod that waits (the carrier too), with the volume's name in it.
    pub waiters: Vec<(String, String)>,
}

/// What is restored, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub restorations: Vec<Restoration>,
    /// Copies without a pod to restore them into.
    pub homeless: Vec<Copy>,
}

/// Plans the volumes of a restore from the copies that exist and the pods that are going to be restored.
pub fn plan(copies: &[Copy], pods: &[Pod]) -> Plan {
    let mut by_name: BTreeMap<(&str, &str), &Pod> = BTreeMap::new();
    for pod in pods {
        by_name.insert((&pod.namespace, &pod.name), pod);
    }
    // The newest copy of each claim, and of each private volume.
    let mut claims: BTreeMap<(&str, String), &Copy> = BTreeMap::new();
    let mut private: BTreeMap<(&str, &str, &str), &Copy> = BTreeMap::new();
    let mut plan = Plan::default();
    for copy in copies {
        let volume = by_name
            .get(&(copy.namespace.as_str(), copy.pod.as_str()))
            .and_then(|pod| pod.volumes.iter().find(|volume| volume.name == copy.volume));
        let claim = match (volume.map(|volume| &volume.kind), &copy.claim) {
            (Some(VolumeKind::Claim(claim)), _) => Some(claim.clone()),
            (Some(VolumeKind::Private), _) => None,
            (Some(VolumeKind::Fixed), _) => {
                plan.homeless.push(copy.clone());
                continue;
            }
            (None, recorded) => recorded.clone(),
        };
        match claim {
            Some(claim) => newest(claims.entry((&copy.namespace, claim)), copy),
            None => newest(
                private.entry((&copy.namespace, &copy.pod, &copy.volume)),
                copy,
            ),
        }
    }
    for ((namespace, claim), copy) in claims {
        let waiters: Vec<(String, String)> = by_name
            .range((namespace, "")..)
            .take_while(|((of, _), _)| *of == namespace)
            .filter_map(|((_, name), pod)| {
                Some(((*name).to_owned(), pod.volume_of_claim(&claim)?.to_owned()))
            })
            .collect();
        let same = waiters.iter().find(|(name, _)| *name == copy.pod);
        match same.or(waiters.first()).cloned() {
            Some(carrier) => plan.restorations.push(Restoration {
                copy: copy.clone(),
                namespace: namespace.to_owned(),
                carrier,
                claim: Some(claim),
                waiters,
            }),
            None => plan.homeless.push(copy.clone()),
        }
    }
    for ((namespace, pod, volume), copy) in private {
        let carrier = (pod.to_owned(), volume.to_owned());
        let known = by_name
            .get(&(namespace, pod))
            .is_some_and(|pod| pod.volumes.iter().any(|found| found.name == volume));
        if known {
            plan.restorations.push(Restoration {
                copy: copy.clone(),
                namespace: namespace.to_owned(),
                waiters: vec![carrier.clone()],
                carrier,
                claim: None,
            });
        } else {
            plan.homeless.push(copy.clone());
        }
    }
    plan
}

fn newest<'a, K: Ord>(entry: std::collections::btree_map::Entry<'_, K, &'a Copy>, copy: &'a Copy) {
    let known = entry.or_insert(copy);
    if (&copy.finished, &copy.snapshot) > (&known.finished, &known.snapshot) {
        *known = copy;
    }
}

impl Plan {
    /// The volumes a pod waits for, with the number of pods that wait for the same data.
    pub fn waits(&self, namespace: &str, pod: &str) -> BTreeMap<String, usize> {
        self.restorations
            .iter()
            .filter(|restoration| restoration.namespace == namespace)
            .filter_map(|restoration| {
                let (_, volume) = restoration.waiters.iter().find(|(name, _)| name == pod)?;
                Some((volume.clone(), restoration.waiters.len()))
            })
            .collect()
    }

    /// Takes out what would go into claims, and gives it.
    pub fn leave_claims(&mut self) -> Vec<Restoration> {
        let (left, kept) = std::mem::take(&mut self.restorations)
            .into_iter()
            .partition(|restoration| restoration.claim.is_some());
        self.restorations = kept;
        left
    }

    /// Takes out what would go into one claim.
    pub fn leave_claim(&mut self, namespace: &str, claim: &str) {
        self.restorations.retain(|restoration| {
            restoration.namespace != namespace || restoration.claim.as_deref() != Some(claim)
        });
    }

    /// The namespaces of claims under restore.
    pub fn namespaces_of_claims(&self) -> BTreeSet<&str> {
        self.restorations
            .iter()
            .filter(|restoration| restoration.claim.is_some())
            .map(|restoration| restoration.namespace.as_str())
            .collect()
    }

    /// The claims under restore of a namespace.
    pub fn claims(&self, namespace: &str) -> BTreeSet<&str> {
        self.restorations
            .iter()
            .filter(|restoration| restoration.namespace == namespace)
            .filter_map(|restoration| restoration.claim.as_deref())
            .collect()
    }

    /// Whether data of this claim is going to be restored.
    pub fn restores_claim(&self, namespace: &str, claim: &str) -> bool {
        self.claims(namespace).contains(claim)
    }
}

/// Which of `claims` the pods of a workload would mount: those its pod template names, and those a stateful set's templates make.
/// Works for every kind that keeps a pod template where the built-in ones do, also for custom ones.
pub fn claims_of_workload(object: &Value, claims: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for template in ["/spec/template", "/spec/jobTemplate/spec/template"] {
        for volume in list(object, &format!("{template}/spec/volumes")) {
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                found.extend(claims.get(claim).map(|claim| (*claim).to_owned()));
            }
        }
    }
    for template in list(object, "/spec/volumeClaimTemplates") {
        let prefix = format!("{}-{}-", name(template), name(object));
        found.extend(
            claims
                .iter()
                .filter(|claim| {
                    claim.strip_prefix(&prefix).is_some_and(|ordinal| {
                        !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit())
                    })
                })
                .map(|claim| (*claim).to_owned()),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn copy(pod: &str, volume: &str, claim: Option<&str>, snapshot: &str) -> Copy {
        Copy {
            namespace: "n".to_owned(),
            pod: pod.to_owned(),
            volume: volume.to_owned(),
            claim: claim.map(str::to_owned),
            claim_uid: claim.map(|claim| format!("uid-{claim}")),
            snapshot: snapshot.to_owned(),
            finished: format!("2026-01-01T00:00:00Z{snapshot}"),
        }
    }

    fn pod(name: &str, volumes: &Value) -> Pod {
        Pod::read(
            &json!({"metadata": {"name": name, "namespace": "n"}, "spec": {"volumes": volumes}}),
        )
    }

    fn claim(volume: &str, claim: &str) -> Value {
        json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}})
    }

    #[test]
    fn of_the_volumes_of_a_pod_those_that_count_are_kept() {
        let empty = |name: &str| json!({"name": name, "emptyDir": {}});
        let volumes = [
            claim("a", "shared"),
            claim("b", "shared"),
            claim("c", "shared"),
            empty("d"),
            empty("e"),
            json!({"name": "f", "configMap": {}}),
        ];
        let mut pod = pod("web", &json!(volumes));
        pod.keep(|volume| ["b", "e"].contains(&volume));
        let kept: Vec<&str> = pod.volumes.iter().map(|volume| &*volume.name).collect();
        assert_eq!(kept, ["a", "b", "e"]);
    }

    #[test]
    fn every_pod_of_a_shared_claim_waits_and_one_carries() {
        let pods = [
            pod("web-a", &json!([claim("logs", "shared")])),
            pod(
                "web-b",
                &json!([claim("logs", "shared"), {"name": "tmp", "emptyDir": {}}]),
            ),
            pod("reader", &json!([claim("input", "shared")])),
            pod("other", &json!([claim("logs", "own")])),
        ];
        let plan = plan(&[copy("web-b", "logs", Some("shared"), "1")], &pods);
        assert!(plan.homeless.is_empty());
        let [only] = plan.restorations.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(only.carrier, ("web-b".to_owned(), "logs".to_owned()));
        assert_eq!(only.waiters.len(), 3);
        assert_eq!(plan.waits("n", "reader"), [("input".to_owned(), 3)].into());
        assert_eq!(plan.waits("n", "web-a"), [("logs".to_owned(), 3)].into());
        assert!(plan.waits("n", "other").is_empty());
        assert!(plan.waits("m", "web-a").is_empty());
        assert!(plan.restores_claim("n", "shared"));
        assert!(!plan.restores_claim("n", "own"));
    }

    #[test]
    fn another_pod_of_the_claim_carries_when_the_one_backed_up_is_not_restored() {
        let pods = [
            pod("web-c", &json!([claim("logs", "shared")])),
            pod("web-a", &json!([claim("x", "shared")])),
        ];
        let plan = plan(&[copy("gone", "logs", Some("shared"), "1")], &pods);
        assert_eq!(
            plan.restorations[0].carrier,
            ("web-a".to_owned(), "x".to_owned())
        );
    }

    #[test]
    fn data_without_a_pod_is_named() {
        let nobody = copy("gone", "logs", Some("shared"), "1");
        let own = copy("gone", "cache", None, "2");
        let fixed = copy("here", "conf", None, "3");
        let pods = [pod("here", &json!([{"name": "conf", "configMap": {}}]))];
        let plan = plan(&[nobody.clone(), own.clone(), fixed.clone()], &pods);
        assert!(plan.restorations.is_empty());
        assert_eq!(plan.homeless, [fixed, nobody, own]);
    }

    #[test]
    fn private_volumes_go_back_into_their_own_pod() {
        let pods = [
            pod(
                "db-0",
                &json!([{"name": "cache", "emptyDir": {}}, claim("data", "data-db-0")]),
            ),
            pod("db-1", &json!([{"name": "cache", "emptyDir": {}}])),
        ];
        let plan = plan(
            &[
                copy("db-0", "cache", None, "1"),
                copy("db-0", "data", Some("data-db-0"), "2"),
            ],
            &pods,
        );
        assert_eq!(
            plan.waits("n", "db-0"),
            [("cache".to_owned(), 1), ("data".to_owned(), 1)].into()
        );
        assert!(plan.waits("n", "db-1").is_empty());
    }

    #[test]
    fn claims_that_are_left_alone_have_no_waiters_and_private_volumes_keep_theirs() {
        let volumes = json!([
            {"name": "cache", "emptyDir": {}}, claim("data", "data-db-0"), claim("logs", "logs")
        ]);
        let copies = [
            copy("db-0", "cache", None, "1"),
            copy("db-0", "data", Some("data-db-0"), "2"),
            copy("db-0", "logs", Some("logs"), "3"),
        ];
        let mut plan = plan(&copies, &[pod("db-0", &volumes)]);
        assert_eq!(plan.namespaces_of_claims(), ["n"].into());
        plan.leave_claim("other", "logs");
        assert!(plan.restores_claim("n", "logs"));
        plan.leave_claim("n", "logs");
        assert_eq!(
            plan.waits("n", "db-0"),
            [("cache".to_owned(), 1), ("data".to_owned(), 1)].into()
        );
        let left = plan.leave_claims();
        let left: Vec<_> = left.iter().map(|left| left.claim.as_deref()).collect();
        assert_eq!(left, [Some("data-db-0")]);
        assert_eq!(plan.waits("n", "db-0"), [("cache".to_owned(), 1)].into());
        assert!(plan.namespaces_of_claims().is_empty());
    }

    #[test]
    fn the_newest_copy_of_a_claim_is_taken_once() {
        let pods = [
            pod("a", &json!([claim("v", "c")])),
            pod("b", &json!([claim("v", "c")])),
        ];
        let plan = plan(
            &[
                copy("b", "v", Some("c"), "2"),
                copy("a", "v", Some("c"), "1"),
            ],
            &pods,
        );
        assert_eq!(plan.restorations.len(), 1);
        assert_eq!(plan.restorations[0].copy.snapshot, "2");
    }

    #[test]
    fn the_pods_own_word_on_its_claim_beats_a_missing_record() {
        // Backups of an old Velero have no claim name on the copy.
        let pods = [pod("a", &json!([claim("v", "c")]))];
        let plan = plan(&[copy("a", "v", None, "1")], &pods);
        assert_eq!(plan.restorations[0].claim.as_deref(), Some("c"));
    }

    #[test]
    fn workloads_that_would_mount_a_claim_are_found() {
        let claims: BTreeSet<&str> =
            ["logs", "data-db-0", "data-db-12", "data-db-x", "data-dba-0"].into();
        let with = |volumes: Value| json!({"metadata": {"name": "db"}, "spec": {"template": {"spec": {"volumes": volumes}}}});
        let cases = [
            (with(json!([claim("v", "logs")])), vec!["logs"]),
            (
                with(json!([claim("v", "unrelated"), {"name": "t", "emptyDir": {}}])),
                vec![],
            ),
            (
                json!({"metadata": {"name": "db"}, "spec": {"template": {"spec": {}},
                    "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}}),
                vec!["data-db-0", "data-db-12"],
            ),
            (
                json!({"metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": {"volumes": [claim("v", "logs")]}}}}}}),
                vec!["logs"],
            ),
            (
                json!({"metadata": {"name": "s"}, "spec": {"ports": []}}),
                vec![],
            ),
        ];
        for (object, want) in cases {
            let want: BTreeSet<String> = want.into_iter().map(str::to_owned).collect();
            assert_eq!(claims_of_workload(&object, &claims), want, "{object}");
        }
    }
}
