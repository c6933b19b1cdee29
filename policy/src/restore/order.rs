//! Which kinds are restored first (Velero's list, velero-compat §7.2).

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// The definitions of custom resources.
pub const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// Between what comes first and what comes last.
const SEPARATOR: &str = "-";

/// Restored first, in this order. Pods come before what owns them, so that owners adopt restored pods instead of making new ones.
const FIRST: &[&str] = &[
    "namespaces",
    "storageclasses.storage.k8s.io",
    "volumesnapshotclasses.snapshot.storage.k8s.io",
    "volumesnapshotcontents.snapshot.storage.k8s.io",
    "volumesnapshots.snapshot.storage.k8s.io",
    "datauploads.velero.io",
    "persistentvolumes",
    "persistentvolumeclaims",
    "clusterroles.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "serviceaccounts",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "secrets",
    "configmaps",
    "limitranges",
    "priorityclasses.scheduling.k8s.io",
    "pods",
    "replicasets.apps",
    "clusterclasses.cluster.x-k8s.io",
    "endpoints",
    "services",
];

/// Restored last, in this order.
const LAST: &[&str] = &[
    "clusterbootstraps.run.tanzu.vmware.com",
    "clusters.cluster.x-k8s.io",
    "clusterresourcesets.addons.cluster.x-k8s.io",
    "apps.kappctrl.k14s.io",
    "packageinstalls.packaging.carvel.dev",
];

/// The order that kinds are restored in. Written as Velero's `--restore-resource-priorities`: names separated by commas, and what stands
/// behind a `-` comes last. A half that is not given is the default's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    first: Vec<String>,
    last: Vec<String>,
}

impl Default for Order {
    fn default() -> Self {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        Self {
            first: names(FIRST),
            last: names(LAST),
        }
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        let mut halves = names.split(|name| *name == SEPARATOR);
        let (first, last) = (halves.next(), halves.next());
        if halves.next().is_some() {
            return Err(format!(
                "{text:?}: one {SEPARATOR:?} separates what comes first from what comes last"
            ));
        }
        if names.contains(&"") && !text.is_empty() {
            return Err(format!(
                "{text:?}: a name is missing between two commas; write for example pods,replicasets.apps"
            ));
        }
        let given = |half: Option<&[&str]>, default: Vec<String>| match half {
            Some(half) if !half.is_empty() && !text.is_empty() => {
                half.iter().map(ToString::to_string).collect()
            }
            _ => default,
        };
        let default = Self::default();
        Ok(Self {
            first: given(first, default.first),
            last: given(last, default.last),
        })
    }
}

/// Where a resource (`plural[.group]`) stands; sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// What others are made of: always first, as in Velero.
    Definitions,
    /// Named in the list of what comes first.
    First(usize),
    /// Everything else, alphabetically.
    Middle,
    /// Named in the list of what comes last.
    Last(usize),
}

impl Order {
    /// The rank of a resource.
    pub fn rank(&self, resource: &str) -> Rank {
        let at = |list: &[String]| list.iter().position(|name| name == resource);
        match (at(&self.first), at(&self.last)) {
            _ if resource == DEFINITIONS => Rank::Definitions,
            (Some(index), _) => Rank::First(index),
            (None, Some(index)) => Rank::Last(index),
            (None, None) => Rank::Middle,
        }
    }

    /// Sorts resources into the order they are restored in.
    pub fn sort(&self, resources: &mut [String]) {
        resources.sort_by(|a, b| self.rank(a).cmp(&self.rank(b)).then_with(|| a.cmp(b)));
    }
}

/// What a run that was cut off had made: the next one makes none of it again, for what is not there any more has gone since.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Through {
    /// Kinds of which nothing failed, and the namespaces (of the backup) that each does not speak of: they come later, or workloads in them
    /// wait for data.
    kinds: BTreeMap<String, BTreeSet<String>>,
}

impl Through {
    /// One more kind is through, but for these namespaces. What an earlier run had made stays made.
    pub fn add(&mut self, kind: &str, but: BTreeSet<String>) {
        match self.kinds.get_mut(kind) {
            Some(known) => known.retain(|namespace| but.contains(namespace)),
            None => drop(self.kinds.insert(kind.to_owned(), but)),
        }
    }

    /// A kind that is through is so in this namespace too.
    pub fn add_namespace(&mut self, kind: &str, namespace: &str) {
        if let Some(but) = self.kinds.get_mut(kind) {
            but.remove(namespace);
        }
    }

    /// Whether an object had been made.
    pub fn has(&self, kind: &str, namespace: Option<&str>) -> bool {
        let but = self.kinds.get(kind);
        but.is_some_and(|but| namespace.is_none_or(|namespace| !but.contains(namespace)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_through_does_not_speak_of_namespaces_that_come_later() {
        let mut through = Through::default();
        assert!(!through.has("jobs.batch", Some("a")));
        let but = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        through.add("jobs.batch", but(&["b", "d"]));
        // Taken over when d was still late and another was going, where the first run had made its jobs.
        through.add("jobs.batch", but(&["c", "d"]));
        through.add("services", but(&["c", "d"]));
        through.add_namespace("services", "d");
        through.add_namespace("secrets", "a");
        let read: Through =
            serde_json::from_str(&serde_json::to_string(&through).unwrap()).unwrap();
        for (kind, namespace, expected) in [
            ("jobs.batch", Some("a"), true),
            ("jobs.batch", Some("b"), true),
            ("jobs.batch", Some("c"), true),
            ("jobs.batch", Some("d"), false),
            ("jobs.batch", None, true),
            ("services", Some("a"), true),
            ("services", Some("c"), false),
            ("services", Some("d"), true),
            ("storageclasses.storage.k8s.io", None, false),
            ("secrets", Some("a"), false),
        ] {
            assert_eq!(read.has(kind, namespace), expected, "{kind} {namespace:?}");
        }
    }

    #[test]
    fn known_kinds_keep_the_order_and_the_rest_is_alphabetical() {
        let mut found: Vec<String> = [
            "statefulsets.apps",
            "packageinstalls.packaging.carvel.dev",
            "services",
            "pods",
            "deployments.apps",
            "secrets",
            "persistentvolumeclaims",
            "persistentvolumes",
            "clusters.cluster.x-k8s.io",
            "namespaces",
            "customresourcedefinitions.apiextensions.k8s.io",
            "replicasets.apps",
            "controllerrevisions.apps",
        ]
        .map(str::to_owned)
        .to_vec();
        Order::default().sort(&mut found);
        assert_eq!(
            found,
            [
                "customresourcedefinitions.apiextensions.k8s.io",
                "namespaces",
                "persistentvolumes",
                "persistentvolumeclaims",
                "secrets",
                "pods",
                "replicasets.apps",
                "services",
                "controllerrevisions.apps",
                "deployments.apps",
                "statefulsets.apps",
                "clusters.cluster.x-k8s.io",
                "packageinstalls.packaging.carvel.dev",
            ]
        );
    }

    #[test]
    fn an_order_of_ones_own_moves_what_it_names() {
        let sorted = |order: &str| {
            let order: Order = order.parse().unwrap();
            let names = [
                "pods",
                DEFINITIONS,
                "services",
                "clusters.cluster.x-k8s.io",
                "jobs.batch",
            ];
            let mut found = names.map(str::to_owned);
            order.sort(&mut found);
            found
                .map(|name| name.split('.').next().unwrap_or_default().to_owned())
                .join(" ")
        };
        for (order, expected) in [
            ("", "customresourcedefinitions pods services jobs clusters"),
            ("-", "customresourcedefinitions pods services jobs clusters"),
            (
                "services,pods",
                "customresourcedefinitions services pods jobs clusters",
            ),
            (
                "services, -",
                "customresourcedefinitions services jobs pods clusters",
            ),
            (
                "-,pods,jobs.batch",
                "customresourcedefinitions pods services clusters jobs",
            ),
            (
                "jobs.batch,-,services",
                "customresourcedefinitions jobs clusters pods services",
            ),
        ] {
            assert_eq!(sorted(order), expected, "{order}");
        }
        for wrong in ["pods,-,jobs.batch,-", "pods,,services", ",", "-,"] {
            let why = wrong.parse::<Order>().unwrap_err();
            assert!(why.contains(wrong), "{why}");
        }
    }
}
