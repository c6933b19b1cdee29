//! Which kinds and namespaces a backup includes.

use super::{
    names::{Names, Star},
    resource::{Catalogue, Resource},
};

/// The filters of a Backup, as users write them.
#[derive(Debug, Clone, Default)]
pub struct RawFilter {
    /// `includedNamespaces`.
    pub included_namespaces: Vec<String>,
    /// `excludedNamespaces`.
    pub excluded_namespaces: Vec<String>,
    /// `includedResources` (older style).
    pub included_resources: Vec<String>,
    /// `excludedResources` (older style).
    pub excluded_resources: Vec<String>,
    /// `includeClusterResources` (older style).
    pub include_cluster_resources: Option<bool>,
    /// `includedClusterScopedResources` (newer style).
    pub included_cluster: Vec<String>,
    /// `excludedClusterScopedResources` (newer style).
    pub excluded_cluster: Vec<String>,
    /// `includedNamespaceScopedResources` (newer style).
    pub included_namespaced: Vec<String>,
    /// `excludedNamespaceScopedResources` (newer style).
    pub excluded_namespaced: Vec<String>,
}

/// Kinds of CSI snapshots are stored only where somebody asks for them.
const ONLY_WHEN_ASKED: [&str; 2] = [
    "volumesnapshots.snapshot.storage.k8s.io",
    "volumesnapshotcontents.snapshot.storage.k8s.io",
];
const NAMESPACES: &str = "namespaces";

impl RawFilter {
    fn is_old(&self) -> bool {
        self.include_cluster_resources.is_some()
            || !self.included_resources.is_empty()
            || !self.excluded_resources.is_empty()
    }

    fn is_new(&self) -> bool {
        [
            &self.included_cluster,
            &self.excluded_cluster,
            &self.included_namespaced,
            &self.excluded_namespaced,
        ]
        .iter()
        .any(|list| !list.is_empty())
    }

    /// What is wrong with the filters, in Velero's words; empty when nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut errors = Vec::new();
        if self.is_old() && self.is_new() {
            errors.push(
                "include-resources, exclude-resources and include-cluster-resources are old filter parameters.\n\
                 They cannot be used with include-exclude policies or with include-cluster-scoped-resources, \
                 exclude-cluster-scoped-resources, include-namespace-scoped-resources and exclude-namespace-scoped-resources"
                    .to_owned(),
            );
        }
        let mut check = |what: &str, include: &[String], exclude: &[String], star| {
            if let Err(found) = Names::new(include, exclude, star) {
                errors.extend(
                    found
                        .into_iter()
                        .map(|why| format!("Invalid included/excluded {what} lists: {why}")),
                );
            }
        };
        check(
            "resource",
            &self.included_resources,
            &self.excluded_resources,
            Star::IncludeOnly,
        );
        check(
            "namespace",
            &self.included_namespaces,
            &self.excluded_namespaces,
            Star::IncludeOnly,
        );
        check(
            "cluster-scoped resource",
            &self.included_cluster,
            &self.excluded_cluster,
            Star::Either,
        );
        check(
            "namespace-scoped resource",
            &self.included_namespaced,
            &self.excluded_namespaced,
            Star::Either,
        );
        errors
    }
}

#[derive(Debug, Clone)]
enum Kinds {
    Old {
        kinds: Names,
        cluster: Option<bool>,
    },
    New {
        cluster: Names,
        cluster_given: bool,
        namespaced: Names,
    },
}

/// The filters of a backup, ready to be asked.
#[derive(Debug, Clone)]
pub struct Filter {
    namespaces: Names,
    kinds: Kinds,
}

impl Filter {
    /// Compiles the filters against what the cluster serves. Names of kinds that it does not serve are kept as they are and given
    /// back for a warning.
    ///
    /// # Errors
    /// The filters' problems.
    pub fn new(raw: &RawFilter, catalogue: &Catalogue) -> Result<(Self, Vec<String>), Vec<String>> {
        let problems = raw.problems();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut unknown = Vec::new();
        let mut resolve = |names: &[String]| -> Vec<String> {
            let resolve = |name: &String| {
                if name.contains(['*', '?', '[']) {
                    return name.clone();
                }
                catalogue.resolve(name).unwrap_or_else(|| {
                    unknown.push(name.clone());
                    name.clone()
                })
            };
            names.iter().map(resolve).collect()
        };
        let kinds = if raw.is_new() {
            Kinds::New {
                cluster: Names::new(
                    &resolve(&raw.included_cluster),
                    &resolve(&raw.excluded_cluster),
                    Star::Either,
                )?,
                cluster_given: !raw.included_cluster.is_empty(),
                namespaced: Names::new(
                    &resolve(&raw.included_namespaced),
                    &resolve(&raw.excluded_namespaced),
                    Star::Either,
                )?,
            }
        } else {
            Kinds::Old {
                kinds: Names::new(
                    &resolve(&raw.included_resources),
                    &resolve(&raw.excluded_resources),
                    Star::IncludeOnly,
                )?,
                cluster: raw.include_cluster_resources,
            }
        };
        let namespaces = Names::new(
            &raw.included_namespaces,
            &raw.excluded_namespaces,
            Star::IncludeOnly,
        )?;
        Ok((Self { namespaces, kinds }, unknown))
    }

    /// The namespaces.
    pub fn namespaces(&self) -> &Names {
        &self.namespaces
    }

    /// Whether objects of the kind are collected.
    pub fn collects(&self, resource: &Resource) -> bool {
        let name = resource.group_resource();
        if ONLY_WHEN_ASKED.contains(&name.as_str()) && !self.asks_for(&name) {
            return false;
        }
        let is_namespace = name == NAMESPACES;
        match &self.kinds {
            Kinds::Old { kinds, cluster } => {
                if !resource.namespaced && !is_namespace {
                    let whole = cluster.is_none() && self.namespaces.is_everything();
                    if !(whole || *cluster == Some(true)) {
                        return false;
                    }
                }
                kinds.includes(&name)
            }
            Kinds::New { namespaced, .. } if resource.namespaced => namespaced.includes(&name),
            Kinds::New { cluster, .. } if is_namespace => !cluster.excludes(&name),
            Kinds::New {
                cluster,
                cluster_given,
                namespaced,
            } => {
                let whole = self.namespaces.is_everything() && namespaced.is_everything();
                cluster.includes(&name) && (*cluster_given || whole)
            }
        }
    }

    fn asks_for(&self, name: &str) -> bool {
        match &self.kinds {
            Kinds::Old { kinds, .. } => kinds.names(name),
            Kinds::New {
                cluster,
                namespaced,
                ..
            } => cluster.names(name) || namespaced.names(name),
        }
    }

    /// Whether an object that another object needs may be stored along with it.
    pub fn admits(&self, resource: &Resource, namespace: Option<&str>) -> bool {
        let name = resource.group_resource();
        match (namespace, &self.kinds) {
            (Some(namespace), kinds) => {
                self.namespaces.includes(namespace)
                    && match kinds {
                        Kinds::Old { kinds, .. } => kinds.includes(&name),
                        Kinds::New { namespaced, .. } => namespaced.includes(&name),
                    }
            }
            (None, _) if name == NAMESPACES => true,
            (None, Kinds::Old { kinds, cluster }) => {
                *cluster != Some(false) && !kinds.excludes(&name)
            }
            (None, Kinds::New { cluster, .. }) => !cluster.excludes(&name),
        }
    }

    /// Whether the definition of a stored custom resource is stored with it: unless the filters speak of definitions themselves.
    pub fn adds_definitions(&self) -> bool {
        const NAME: &str = "customresourcedefinitions.apiextensions.k8s.io";
        match &self.kinds {
            Kinds::Old { kinds, cluster } => *cluster != Some(false) && !kinds.excludes(NAME),
            Kinds::New { cluster, .. } => !cluster.excludes(NAME),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::resource::tests::catalogue;

    fn list(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn kinds(raw: &RawFilter) -> Vec<String> {
        let catalogue = catalogue();
        let (filter, _) = Filter::new(raw, &catalogue).unwrap();
        let kinds = catalogue
            .resources()
            .iter()
            .filter(|resource| filter.collects(resource));
        kinds.map(|resource| resource.plural.clone()).collect()
    }

    #[test]
    fn everything_means_cluster_scoped_kinds_too() {
        assert_eq!(
            kinds(&RawFilter::default()).join(" "),
            "pods persistentvolumeclaims persistentvolumes configmaps events namespaces deployments statefulsets clusterroles orders"
        );
    }

    #[test]
    fn some_namespaces_mean_no_cluster_scoped_kinds_but_namespaces() {
        let some = RawFilter {
            included_namespaces: list("shop"),
            ..Default::default()
        };
        assert!(!kinds(&some).contains(&"persistentvolumes".to_owned()));
        assert!(kinds(&some).contains(&"namespaces".to_owned()));
        let forced = RawFilter {
            include_cluster_resources: Some(true),
            ..some.clone()
        };
        assert!(kinds(&forced).contains(&"clusterroles".to_owned()));
        let never = RawFilter {
            include_cluster_resources: Some(false),
            ..Default::default()
        };
        assert!(!kinds(&never).contains(&"clusterroles".to_owned()));
    }

    #[test]
    fn the_older_filters() {
        let raw = RawFilter {
            included_resources: list("deploy pod"),
            ..Default::default()
        };
        assert_eq!(kinds(&raw), ["pods", "deployments"]);
        let raw = RawFilter {
            excluded_resources: list("events"),
            ..Default::default()
        };
        assert!(!kinds(&raw).contains(&"events".to_owned()));
        let raw = RawFilter {
            included_resources: list("volumesnapshots pods"),
            ..Default::default()
        };
        assert_eq!(kinds(&raw), ["pods", "volumesnapshots"]);
    }

    #[test]
    fn the_newer_filters() {
        let raw = RawFilter {
            included_namespaced: list("pods"),
            ..Default::default()
        };
        assert_eq!(
            kinds(&raw),
            ["pods", "namespaces"],
            "a restriction ends cluster-scoped kinds"
        );
        let raw = RawFilter {
            excluded_cluster: list("clusterroles"),
            ..Default::default()
        };
        assert!(!kinds(&raw).contains(&"clusterroles".to_owned()));
        assert!(
            kinds(&raw).contains(&"persistentvolumes".to_owned()),
            "Velero stores no cluster-scoped kind then"
        );
        let raw = RawFilter {
            included_cluster: list("clusterroles"),
            included_namespaces: list("shop"),
            ..Default::default()
        };
        assert!(kinds(&raw).contains(&"clusterroles".to_owned()));
        assert!(!kinds(&raw).contains(&"persistentvolumes".to_owned()));
        let raw = RawFilter {
            excluded_namespaced: list("*"),
            included_cluster: list("*"),
            ..Default::default()
        };
        assert_eq!(
            kinds(&raw),
            ["persistentvolumes", "namespaces", "clusterroles"]
        );
    }

    #[test]
    fn what_comes_along() {
        let catalogue = catalogue();
        let admits = |raw: RawFilter, name: &str, namespace| {
            let (filter, _) = Filter::new(&raw, &catalogue).unwrap();
            filter.admits(catalogue.find(name).unwrap(), namespace)
        };
        let some = RawFilter {
            included_namespaces: list("shop"),
            ..Default::default()
        };
        assert!(
            admits(some.clone(), "persistentvolumes", None),
            "the volume of a claim"
        );
        assert!(!admits(some.clone(), "pods", Some("other")));
        let listed = RawFilter {
            included_resources: list("pods pvc"),
            ..some.clone()
        };
        assert!(
            admits(listed, "persistentvolumes", None),
            "Velero leaves it out, and with it what its claim was bound to"
        );
        let never = RawFilter {
            include_cluster_resources: Some(false),
            ..some.clone()
        };
        assert!(!admits(never.clone(), "persistentvolumes", None));
        assert!(admits(never, "namespaces", None));
        let only_pods = RawFilter {
            included_resources: list("pods"),
            ..some
        };
        assert!(!admits(only_pods, "persistentvolumeclaims", Some("shop")));
    }

    #[test]
    fn styles_do_not_mix_and_unknown_kinds_are_told() {
        let raw = RawFilter {
            included_resources: list("pods"),
            included_cluster: list("clusterroles"),
            ..Default::default()
        };
        assert!(raw.problems()[0].contains("old filter parameters"));
        let raw = RawFilter {
            included_resources: list("pods gadgets"),
            ..Default::default()
        };
        assert_eq!(Filter::new(&raw, &catalogue()).unwrap().1, ["gadgets"]);
        let raw = RawFilter {
            excluded_namespaces: list("*"),
            ..Default::default()
        };
        assert_eq!(
            raw.problems(),
            ["Invalid included/excluded namespace lists: excludes list cannot contain '*'"]
        );
    }
}
