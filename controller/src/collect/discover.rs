//! What the cluster serves.

use std::collections::HashSet;

use jackline_policy::backup::{Catalogue, Resource};
use kube::{Client, core::discovery::v2::APIGroupDiscovery};

/// A kind that lacks one of these cannot be put back, so it is not taken.
const NEEDED_VERBS: [&str; 4] = ["list", "create", "get", "delete"];

/// The kinds of a cluster.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// The kinds that can be stored, in collection order.
    pub catalogue: Catalogue,
    /// API versions whose server does not answer: their kinds may be missing or out of date.
    pub stale: Vec<String>,
}

/// Asks the API server what it serves, in two requests.
///
/// # Errors
/// When it does not answer.
pub async fn discover(client: &Client) -> Result<Discovered, kube::Error> {
    let (core, groups) = tokio::try_join!(
        client.list_core_api_versions_aggregated(),
        client.list_api_groups_aggregated()
    )?;
    let mut found = Found::default();
    core.items.iter().for_each(|group| found.group("", group));
    for group in &groups.items {
        let name = group
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.name.clone());
        found.group(&name.unwrap_or_default(), group);
    }
    Ok(Discovered {
        catalogue: Catalogue::new(found.resources),
        stale: found.stale,
    })
}

#[derive(Default)]
struct Found {
    resources: Vec<Resource>,
    stale: Vec<String>,
}

impl Found {
    /// Versions come with the preferred one first; a kind counts in the first version that serves it.
    fn group(&mut self, name: &str, group: &APIGroupDiscovery) {
        let mut seen = HashSet::new();
        for version in &group.versions {
            let version_name = version.version.clone().unwrap_or_default();
            if version.freshness.as_deref() == Some("Stale") {
                self.stale.push(format!("{name}/{version_name}"));
            }
            for resource in &version.resources {
                let plural = resource.resource.clone().unwrap_or_default();
                let storable = NEEDED_VERBS
                    .iter()
                    .all(|verb| resource.verbs.iter().any(|v| v == verb));
                if plural.is_empty() || !storable || !seen.insert(plural.clone()) {
                    continue;
                }
                let kind = resource
                    .response_kind
                    .as_ref()
                    .and_then(|kind| kind.kind.clone());
                self.resources.push(Resource {
                    group: name.to_owned(),
                    version: version_name.clone(),
                    plural,
                    singular: resource.singular_resource.clone().unwrap_or_default(),
                    short_names: resource.short_names.clone(),
                    kind: kind.unwrap_or_default(),
                    namespaced: resource.scope.as_deref() == Some("Namespaced"),
                });
            }
        }
    }
}
