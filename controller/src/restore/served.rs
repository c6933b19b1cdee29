//! What this cluster serves, and the names that people give to it.

use std::collections::BTreeMap;

use kube::{
    Client,
    core::{ApiResource, GroupVersionKind},
};

/// A kind that the cluster serves.
#[derive(Debug, Clone)]
pub struct ServedResource {
    /// Group, kind, plural, and the preferred version.
    pub api: ApiResource,
    /// Every version, the preferred one first.
    pub versions: Vec<String>,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    singular: String,
    short_names: Vec<String>,
}

impl ServedResource {
    /// The kind in another version, if it is served in that.
    pub fn in_version(&self, version: &str) -> Option<ApiResource> {
        if !self.versions.iter().any(|served| served == version) {
            return None;
        }
        let gvk = GroupVersionKind::gvk(&self.api.group, version, &self.api.kind);
        Some(ApiResource::from_gvk_with_plural(&gvk, &self.api.plural))
    }
}

/// Everything that the cluster serves, by `plural[.group]`.
#[derive(Debug, Clone, Default)]
pub struct Served {
    resources: BTreeMap<String, ServedResource>,
}

impl Served {
    /// Asks the API server: two requests.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn discover(client: &Client) -> Result<Self, kube::Error> {
        let (core, groups) = futures::try_join!(
            client.list_core_api_versions_aggregated(),
            client.list_api_groups_aggregated()
        )?;
        let mut served = Self::default();
        for group in core.items.into_iter().chain(groups.items) {
            let group_name = group
                .metadata
                .and_then(|metadata| metadata.name)
                .unwrap_or_default();
            for version in group.versions {
                let version_name = version.version.unwrap_or_default();
                for resource in version.resources {
                    let Some(plural) = resource.resource else {
                        continue;
                    };
                    let Some(kind) = resource.response_kind.and_then(|gvk| gvk.kind) else {
                        continue;
                    };
                    let names = (
                        resource.singular_resource.unwrap_or_default(),
                        resource.short_names,
                    );
                    let namespaced = resource.scope.as_deref() == Some("Namespaced");
                    served.add(
                        &group_name,
                        &version_name,
                        &plural,
                        &kind,
                        namespaced,
                        names,
                    );
                }
            }
        }
        Ok(served)
    }

    fn add(
        &mut self,
        group: &str,
        version: &str,
        plural: &str,
        kind: &str,
        namespaced: bool,
        (singular, short_names): (String, Vec<String>),
    ) {
        let name = if group.is_empty() {
            plural.to_owned()
        } else {
            format!("{plural}.{group}")
        };
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let known = self
            .resources
            .entry(name)
            .or_insert_with(|| ServedResource {
                api: ApiResource::from_gvk_with_plural(&gvk, plural),
                versions: Vec::new(),
                namespaced,
                singular,
                short_names,
            });
        known.versions.push(version.to_owned());
    }

    /// A kind by `plural[.group]`.
    pub fn get(&self, resource: &str) -> Option<&ServedResource> {
        self.resources.get(resource)
    }

    /// The `plural[.group]` that a person means: that itself, a plural, singular, short name or kind, with or without its group. The
    /// core group wins, then the first in the alphabet. What nothing matches stays as it is.
    pub fn resolve(&self, name: &str) -> String {
        if name == "*" || self.resources.contains_key(name) {
            return name.to_owned();
        }
        let lower = name.to_lowercase();
        let (plain, group) = lower
            .split_once('.')
            .map_or((lower.as_str(), None), |(a, b)| (a, Some(b)));
        let named = |resource: &ServedResource| {
            resource.api.plural == plain
                || resource.singular == plain
                || resource.api.kind.to_lowercase() == plain
                || resource.short_names.iter().any(|short| short == plain)
        };
        let mut found: Vec<(&String, &ServedResource)> = self
            .resources
            .iter()
            .filter(|(_, resource)| {
                named(resource) && group.is_none_or(|group| resource.api.group == group)
            })
            .collect();
        found.sort_by_key(|(name, resource)| (!resource.api.group.is_empty(), (*name).clone()));
        found
            .first()
            .map_or_else(|| name.to_owned(), |(name, _)| (*name).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> Served {
        let mut served = Served::default();
        let names = |singular: &str, short: &str| {
            (
                singular.to_owned(),
                vec![short.to_owned()]
                    .into_iter()
                    .filter(|s| !s.is_empty())
                    .collect(),
            )
        };
        served.add(
            "",
            "v1",
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            true,
            names("persistentvolumeclaim", "pvc"),
        );
        served.add("", "v1", "events", "Event", true, names("event", "ev"));
        served.add(
            "events.k8s.io",
            "v1",
            "events",
            "Event",
            true,
            names("event", "ev"),
        );
        served.add(
            "apps",
            "v1",
            "deployments",
            "Deployment",
            true,
            names("deployment", "deploy"),
        );
        served.add(
            "apps",
            "v1beta2",
            "deployments",
            "Deployment",
            true,
            names("deployment", "deploy"),
        );
        served
    }

    #[test]
    fn names_are_resolved_as_people_write_them() {
        let served = served();
        let cases = [
            ("pvc", "persistentvolumeclaims"),
            ("PersistentVolumeClaim", "persistentvolumeclaims"),
            ("deployments", "deployments.apps"),
            ("deploy", "deployments.apps"),
            ("deployment.apps", "deployments.apps"),
            ("deployments.apps", "deployments.apps"),
            ("events", "events"),
            ("events.events.k8s.io", "events.events.k8s.io"),
            ("*", "*"),
            ("unknown.example.com", "unknown.example.com"),
        ];
        for (name, want) in cases {
            assert_eq!(served.resolve(name), want);
        }
    }

    #[test]
    fn the_first_version_is_the_preferred_one() {
        let served = served();
        let deployments = served.get("deployments.apps").unwrap();
        assert_eq!(deployments.api.api_version, "apps/v1");
        assert_eq!(
            deployments.in_version("v1beta2").unwrap().api_version,
            "apps/v1beta2"
        );
        assert!(deployments.in_version("v2").is_none());
    }
}
