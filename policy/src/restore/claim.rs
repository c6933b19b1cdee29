//! Claims and the persistent volumes under them (velero-compat §7.3).
//!
//! A claim whose data comes from a copy, or whose volume died with it (reclaim policy `Delete`), is provisioned afresh. A volume
//! with policy `Retain` and no copy is put back as it was, for the storage behind it may still be there. A volume that a person made
//! is used again also where its data comes from a copy: nobody would provision another. A claim is never left pointing at a volume
//! that belongs to another claim: that would hand one tenant's data to another.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::json::{annotation, label, map_mut, name, namespace, remove, text};

/// What the binder and the provisioner wrote; a claim that keeps these is never provisioned again.
const BINDING: &[&str] = &[
    "pv.kubernetes.io/bind-completed",
    "pv.kubernetes.io/bound-by-controller",
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/selected-node",
];

/// How a claim gets its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// A new volume is provisioned.
    Provision,
    /// It binds to the volume it names.
    Keep,
}

/// What is known about a claim of the backup.
#[derive(Debug, Clone, Copy)]
pub struct ClaimFacts<'a> {
    /// The claim as stored.
    pub claim: &'a Value,
    /// Its volume as stored.
    pub volume: Option<&'a Value>,
    /// The volume of that name in the cluster now.
    pub live: Option<&'a Value>,
    /// A copy of the data exists.
    pub copied: bool,
    /// The namespace the claim is restored into.
    pub target: &'a str,
}

/// Decides how the claim gets its volume.
pub fn binding(facts: ClaimFacts<'_>) -> Binding {
    let named = text(facts.claim, "/spec/volumeName").is_some_and(|name| !name.is_empty());
    if !named {
        return Binding::Provision;
    }
    if let Some(live) = facts.live {
        return match claim_of(live) {
            None if !facts.copied => Binding::Keep,
            Some(holder)
                if holder == (facts.target, name(facts.claim))
                    && (!facts.copied || is_made_by_hand(live)) =>
            {
                Binding::Keep
            }
            _ => Binding::Provision,
        };
    }
    let holder = facts.volume.and_then(claim_of);
    match facts.volume {
        // One that is put back waits for the claim that it had.
        Some(_) if facts.copied && holder != Some((facts.target, name(facts.claim))) => {
            Binding::Provision
        }
        Some(volume) if restores_volume(volume, facts.copied) => Binding::Keep,
        _ => Binding::Provision,
    }
}

/// Whether a stored volume is restored: not where it went away with its claim, nor where its data comes from a copy and the claim can
/// have another volume.
pub fn restores_volume(volume: &Value, copied: bool) -> bool {
    let class = text(volume, "/spec/storageClassName").unwrap_or_default();
    text(volume, "/spec/persistentVolumeReclaimPolicy") != Some("Delete")
        && (!copied || is_made_by_hand(volume) && class.is_empty())
}

/// Whether no provisioner made the volume.
fn is_made_by_hand(volume: &Value) -> bool {
    annotation(volume, "pv.kubernetes.io/provisioned-by").is_none()
        && text(volume, "/spec/persistentVolumeReclaimPolicy") == Some("Retain")
}

/// What frees a volume for a new claim of the same name, when the claim it belonged to is gone.
pub fn release(live: &Value) -> Option<Value> {
    let uid = text(live, "/spec/claimRef/uid").filter(|uid| !uid.is_empty());
    let released = text(live, "/status/phase") == Some("Released") && uid.is_some();
    released.then(|| {
        json!({
            "metadata": {"resourceVersion": live["metadata"]["resourceVersion"]},
            "spec": {"claimRef": {"uid": null, "resourceVersion": null}},
        })
    })
}

/// What the volume that was provisioned in place of a stored one gets of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    labels: BTreeMap<String, String>,
    policy: Option<String>,
}

const RECLAIM_POLICY: &str = "/spec/persistentVolumeReclaimPolicy";

impl Details {
    /// Those of a stored volume. Where a volume can be reached from, only who made it knows.
    pub fn of(stored: &Value) -> Self {
        let is_place = |key: &str| {
            ["topology.", "failure-domain."]
                .iter()
                .any(|place| key.starts_with(place))
        };
        let labels = stored.pointer("/metadata/labels");
        let labels = labels.and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter(|(key, _)| !is_place(key));
        let policy = text(stored, RECLAIM_POLICY).filter(|policy| !policy.is_empty());
        Self {
            labels: labels
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            policy: policy.map(str::to_owned),
        }
    }

    /// What puts them on a volume that lacks some.
    pub fn patch(&self, live: &Value) -> Option<Value> {
        let mut patch = json!({});
        for (key, value) in &self.labels {
            if label(live, key) != Some(value) {
                patch["metadata"]["labels"][key] = json!(value);
            }
        }
        let kept = self.policy.as_deref();
        if let Some(kept) = kept.filter(|kept| text(live, RECLAIM_POLICY) != Some(kept)) {
            patch["spec"]["persistentVolumeReclaimPolicy"] = json!(kept);
        }
        if patch.as_object().is_some_and(serde_json::Map::is_empty) {
            return None;
        }
        // Not onto another of its name.
        patch["metadata"]["uid"] = live["metadata"]["uid"].clone();
        Some(patch)
    }
}

/// Namespace and name of the claim that a volume belongs to.
pub fn claim_of(volume: &Value) -> Option<(&str, &str)> {
    Some((
        text(volume, "/spec/claimRef/namespace")?,
        text(volume, "/spec/claimRef/name")?,
    ))
}

/// Takes off a claim what ties it to the cluster it came from. Runs before the metadata is reset.
pub fn prepare_claim(claim: &mut Value, binding: Binding) {
    for key in BINDING {
        remove(claim, &["metadata", "annotations"], key);
    }
    for field in ["dataSource", "dataSourceRef"] {
        remove(claim, &["spec"], field);
    }
    if binding == Binding::Provision {
        remove(claim, &["spec"], "volumeName");
        // A claim with a selector is never provisioned dynamically.
        remove(claim, &["spec"], "selector");
    }
}

/// Records which claim's snapshots hold this claim's data, so that the next backup finds its parent.
pub fn note_ancestor(claim: &mut Value, key: &str, uid: &str) {
    if let Some(annotations) = map_mut(claim, &["metadata", "annotations"]) {
        annotations.insert(key.to_owned(), Value::String(uid.to_owned()));
    }
}

/// Unties a volume from the identity of the claim it was bound to; name and (mapped) namespace stay, so nobody else can take it.
pub fn prepare_volume(volume: &mut Value, mapping: &BTreeMap<String, String>) {
    remove(
        volume,
        &["metadata", "annotations"],
        "pv.kubernetes.io/bound-by-controller",
    );
    let mapped = text(volume, "/spec/claimRef/namespace")
        .and_then(|from| mapping.get(from))
        .cloned();
    if let Some(claim) = volume
        .pointer_mut("/spec/claimRef")
        .and_then(Value::as_object_mut)
    {
        claim.remove("uid");
        claim.remove("resourceVersion");
        if let Some(mapped) = mapped {
            claim.insert("namespace".to_owned(), Value::String(mapped));
        }
    }
}

/// The key of a claim: namespace and name.
pub fn key(claim: &Value) -> (String, String) {
    (
        namespace(claim).unwrap_or_default().to_owned(),
        name(claim).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim() -> Value {
        json!({
            "metadata": {"name": "data", "namespace": "shop", "annotations": {
                "pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes",
                "volume.kubernetes.io/storage-provisioner": "x", "volume.kubernetes.io/selected-node": "n", "mine": "1"}},
            "spec": {"volumeName": "pv-1", "storageClassName": "local", "selector": {"matchLabels": {"a": "b"}},
                "dataSource": {"kind": "VolumeSnapshot", "name": "x"}, "dataSourceRef": {"kind": "VolumeSnapshot", "name": "x"}}
        })
    }

    fn volume(policy: &str, holder: Option<(&str, &str)>) -> Value {
        let mut volume = json!({"metadata": {"name": "pv-1"}, "spec": {"persistentVolumeReclaimPolicy": policy}});
        if let Some((namespace, name)) = holder {
            volume["spec"]["claimRef"] =
                json!({"namespace": namespace, "name": name, "uid": "u", "resourceVersion": "1"});
        }
        volume
    }

    #[test]
    fn how_a_claim_gets_its_volume() {
        let claim = claim();
        let unbound = json!({"metadata": {"name": "data", "namespace": "shop"}, "spec": {}});
        let (retain, delete) = (volume("Retain", None), volume("Delete", None));
        let ours = volume("Retain", Some(("shop", "data")));
        let theirs = volume("Retain", Some(("bank", "data")));
        type Case<'a> = (
            &'a str,
            &'a Value,
            Option<&'a Value>,
            Option<&'a Value>,
            bool,
            Binding,
        );
        let provisioned = |mut volume: Value| {
            volume["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": "x"});
            volume
        };
        let made = provisioned(ours.clone());
        let mut classed = ours.clone();
        classed["spec"]["storageClassName"] = json!("local");
        let cases: [Case<'_>; 13] = [
            (
                "a copy",
                &claim,
                Some(&made),
                None,
                true,
                Binding::Provision,
            ),
            (
                "a copy, volume still there",
                &claim,
                Some(&made),
                Some(&made),
                true,
                Binding::Provision,
            ),
            (
                "a copy, volume made by hand and still there",
                &claim,
                Some(&ours),
                Some(&ours),
                true,
                Binding::Keep,
            ),
            (
                "a copy, volume made by hand and now someone else's",
                &claim,
                Some(&ours),
                Some(&theirs),
                true,
                Binding::Provision,
            ),
            (
                "a copy, volume made by hand and gone",
                &claim,
                Some(&ours),
                None,
                true,
                Binding::Keep,
            ),
            (
                "a copy, volume made by hand and gone, of a class",
                &claim,
                Some(&classed),
                None,
                true,
                Binding::Provision,
            ),
            (
                "a copy, volume made by hand and gone, of another claim",
                &claim,
                Some(&theirs),
                None,
                true,
                Binding::Provision,
            ),
            (
                "retained, not copied",
                &claim,
                Some(&retain),
                None,
                false,
                Binding::Keep,
            ),
            (
                "deleted with its claim",
                &claim,
                Some(&delete),
                None,
                false,
                Binding::Provision,
            ),
            (
                "still there and ours",
                &claim,
                None,
                Some(&ours),
                false,
                Binding::Keep,
            ),
            (
                "now someone else's",
                &claim,
                Some(&retain),
                Some(&theirs),
                false,
                Binding::Provision,
            ),
            (
                "volume unknown",
                &claim,
                None,
                None,
                false,
                Binding::Provision,
            ),
            (
                "was never bound",
                &unbound,
                Some(&retain),
                None,
                false,
                Binding::Provision,
            ),
        ];
        for (why, claim, volume, live, copied, want) in cases {
            assert_eq!(
                binding(ClaimFacts {
                    claim,
                    volume,
                    live,
                    copied,
                    target: "shop"
                }),
                want,
                "{why}"
            );
        }
    }

    #[test]
    fn a_provisioned_claim_keeps_nothing_of_its_binding() {
        let mut fresh = claim();
        prepare_claim(&mut fresh, Binding::Provision);
        note_ancestor(&mut fresh, "jackline.dev/ancestor-claim-uid", "uid-1");
        assert_eq!(
            fresh,
            json!({"metadata": {"name": "data", "namespace": "shop", "annotations": {"mine": "1", "jackline.dev/ancestor-claim-uid": "uid-1"}},
                "spec": {"storageClassName": "local"}})
        );
        let mut kept = claim();
        prepare_claim(&mut kept, Binding::Keep);
        assert_eq!(kept["spec"]["volumeName"], "pv-1");
        assert_eq!(kept["metadata"]["annotations"], json!({"mine": "1"}));
    }

    #[test]
    fn only_a_volume_whose_claim_is_gone_is_released() {
        let mut live = volume("Retain", Some(("shop", "data")));
        live["metadata"]["resourceVersion"] = json!("7");
        for phase in ["Bound", "Available", "Failed"] {
            live["status"] = json!({"phase": phase});
            assert_eq!(release(&live), None, "{phase}");
        }
        live["status"] = json!({"phase": "Released"});
        assert_eq!(
            release(&live),
            Some(json!({"metadata": {"resourceVersion": "7"},
                "spec": {"claimRef": {"uid": null, "resourceVersion": null}}}))
        );
        live["spec"]["claimRef"]["uid"] = Value::Null;
        assert_eq!(release(&live), None);
    }

    #[test]
    fn a_provisioned_volume_gets_back_what_a_person_chose() {
        let mut stored = volume("Retain", None);
        stored["metadata"]["labels"] = json!({"tier": "gold", "team": "shop", "topology.kubernetes.io/zone": "a",
            "topology.ebs.csi.aws.com/zone": "a", "failure-domain.beta.kubernetes.io/region": "r"});
        let mut live = volume("Delete", Some(("shop", "data")));
        live["metadata"]["uid"] = json!("u");
        live["metadata"]["labels"] =
            json!({"team": "other", "made-by": "driver", "topology.kubernetes.io/zone": "b"});
        assert_eq!(
            Details::of(&stored).patch(&live),
            Some(json!({
                "metadata": {"uid": "u", "labels": {"tier": "gold", "team": "shop"}},
                "spec": {"persistentVolumeReclaimPolicy": "Retain"}}))
        );
        live["metadata"]["labels"] = json!({"tier": "gold", "team": "shop"});
        assert_eq!(
            Details::of(&stored).patch(&live),
            Some(
                json!({"metadata": {"uid": "u"}, "spec": {"persistentVolumeReclaimPolicy": "Retain"}})
            )
        );
        live["spec"]["persistentVolumeReclaimPolicy"] = json!("Retain");
        assert_eq!(Details::of(&stored).patch(&live), None);
        assert_eq!(Details::of(&json!({})).patch(&live), None);
    }

    #[test]
    fn a_restored_volume_waits_for_its_own_claim_only() {
        let mut stored = volume("Retain", Some(("shop", "data")));
        prepare_volume(
            &mut stored,
            &[("shop".to_owned(), "store".to_owned())].into(),
        );
        assert_eq!(
            stored["spec"]["claimRef"],
            json!({"namespace": "store", "name": "data"})
        );
        assert!(restores_volume(&stored, false));
        assert!(restores_volume(&stored, true));
        stored["spec"]["storageClassName"] = json!("local");
        assert!(!restores_volume(&stored, true));
        assert!(!restores_volume(&volume("Delete", None), false));
    }
}
