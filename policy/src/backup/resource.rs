//! The kinds a cluster serves, their names, and the order they are collected in.

use std::collections::BTreeSet;

/// A kind in its preferred version, as discovery tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// Preferred version.
    pub version: String,
    /// `pods`.
    pub plural: String,
    /// `pod`; empty where the server does not say.
    pub singular: String,
    /// `po`.
    pub short_names: Vec<String>,
    /// `Pod`.
    pub kind: String,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
}

impl Resource {
    /// `pods`, `deployments.apps`.
    pub fn group_resource(&self) -> String {
        group_resource(&self.plural, &self.group)
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.kind.eq_ignore_ascii_case(name)
            || self.short_names.iter().any(|short| short == name)
    }
}

/// `pods`, `deployments.apps`.
pub fn group_resource(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

/// Kinds that are served twice; the first of a row that is met in the collection order is stored.
const COHABITING: [(&str, [&str; 2]); 5] = [
    ("deployments", ["extensions", "apps"]),
    ("daemonsets", ["extensions", "apps"]),
    ("replicasets", ["extensions", "apps"]),
    ("networkpolicies", ["extensions", "networking.k8s.io"]),
    ("events", ["", "events.k8s.io"]),
];

/// Collected first, in this order, so that volumes are read as close to their objects as can be.
const FIRST: [&str; 3] = ["pods", "persistentvolumeclaims", "persistentvolumes"];

/// Everything a cluster serves, in the order it is collected.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    resources: Vec<Resource>,
}

impl Catalogue {
    /// Orders what discovery found: core first, in it pods, claims and volumes; `extensions` last; kinds that are served twice once.
    pub fn new(mut resources: Vec<Resource>) -> Self {
        let groups: Vec<String> = resources
            .iter()
            .map(|resource| resource.group.clone())
            .collect();
        let rank = |resource: &Resource| {
            let group = match resource.group.as_str() {
                "" => 0,
                "extensions" => usize::MAX,
                group => 1 + groups.iter().position(|known| known == group).unwrap_or(0),
            };
            let first = FIRST
                .iter()
                .position(|name| resource.group.is_empty() && *name == resource.plural);
            (group, first.unwrap_or(FIRST.len()))
        };
        resources.sort_by_cached_key(rank);
        let mut seen = BTreeSet::new();
        resources.retain(|resource| {
            let twin = COHABITING.iter().find(|(plural, groups)| {
                *plural == resource.plural && groups.contains(&resource.group.as_str())
            });
            twin.is_none_or(|(plural, _)| seen.insert(*plural))
        });
        Self { resources }
    }

    /// The kinds in collection order.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// The kind of this `plural.group`.
    pub fn find(&self, group_resource: &str) -> Option<&Resource> {
        self.resources
            .iter()
            .find(|resource| resource.group_resource() == group_resource)
    }

    /// `plural.group` of what a user calls a kind: plural, singular, short name or kind, alone or with its group (or the beginning of
    /// the group). `None`: no such kind here.
    pub fn resolve(&self, name: &str) -> Option<String> {
        let name = name.to_lowercase();
        let exact = self
            .resources
            .iter()
            .find(|resource| resource.group_resource() == name);
        let alone = || {
            self.resources
                .iter()
                .find(|resource| resource.is_called(&name))
        };
        let with_group = || {
            let (first, group) = name.split_once('.')?;
            // `deployments.v1.apps` names a version too.
            let rest = group.split_once('.').map(|(_, rest)| rest);
            self.resources.iter().find(|resource| {
                resource.is_called(first)
                    && (resource.group == group
                        || rest == Some(resource.group.as_str())
                        || resource.group.starts_with(&format!("{group}.")))
            })
        };
        exact
            .or_else(alone)
            .or_else(with_group)
            .map(Resource::group_resource)
    }
}

/// `orderedResources` of a backup: per kind the names (`namespace/name` or `name`) that go first. Whitespace around names is not
/// part of them.
pub fn ordered(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::backup) fn resource(
        group: &str,
        plural: &str,
        kind: &str,
        namespaced: bool,
    ) -> Resource {
        Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            kind: kind.to_owned(),
            namespaced,
        }
    }

    pub(in crate::backup) fn catalogue() -> Catalogue {
        let mut deployments = resource("apps", "deployments", "Deployment", true);
        deployments.short_names.push("deploy".to_owned());
        Catalogue::new(vec![
            resource("", "configmaps", "ConfigMap", true),
            resource("", "events", "Event", true),
            resource("", "namespaces", "Namespace", false),
            resource("", "persistentvolumeclaims", "PersistentVolumeClaim", true),
            resource("", "persistentvolumes", "PersistentVolume", false),
            resource("", "pods", "Pod", true),
            resource("extensions", "deployments", "Deployment", true),
            deployments,
            resource("apps", "statefulsets", "StatefulSet", true),
            resource("events.k8s.io", "events", "Event", true),
            resource(
                "rbac.authorization.k8s.io",
                "clusterroles",
                "ClusterRole",
                false,
            ),
            resource("shop.example.com", "orders", "Order", true),
            resource(
                "snapshot.storage.k8s.io",
                "volumesnapshots",
                "VolumeSnapshot",
                true,
            ),
        ])
    }

    #[test]
    fn the_order_is_core_first_with_volumes_in_front_and_twins_once() {
        let order: Vec<String> = catalogue()
            .resources()
            .iter()
            .map(Resource::group_resource)
            .collect();
        assert_eq!(
            order,
            [
                "pods",
                "persistentvolumeclaims",
                "persistentvolumes",
                "configmaps",
                "events",
                "namespaces",
                "deployments.apps",
                "statefulsets.apps",
                "clusterroles.rbac.authorization.k8s.io",
                "orders.shop.example.com",
                "volumesnapshots.snapshot.storage.k8s.io",
            ]
        );
    }

    #[test]
    fn kinds_have_many_names() {
        let catalogue = catalogue();
        let table = [
            ("pods", Some("pods")),
            ("pod", Some("pods")),
            ("Deployment", Some("deployments.apps")),
            ("deploy", Some("deployments.apps")),
            ("deployments.apps", Some("deployments.apps")),
            ("deployment.apps", Some("deployments.apps")),
            ("deployments.v1.apps", Some("deployments.apps")),
            (
                "clusterroles.rbac",
                Some("clusterroles.rbac.authorization.k8s.io"),
            ),
            ("orders", Some("orders.shop.example.com")),
            ("nonsense", None),
            ("pods.apps", None),
        ];
        for (name, expected) in table {
            assert_eq!(catalogue.resolve(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn ordered_names_are_trimmed() {
        assert_eq!(ordered("ns/a, ns/b,,c "), ["ns/a", "ns/b", "c"]);
    }
}
