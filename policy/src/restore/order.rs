//! Which kinds are restored first (Velero's list, velero-compat §7.2).

/// Restored first, in this order. Pods come before what owns them, so that owners adopt restored pods instead of making new ones.
const FIRST: &[&str] = &[
    "customresourcedefinitions.apiextensions.k8s.io",
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

/// Where a resource (`plural[.group]`) stands; sorts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Named in the list of what comes first.
    First(usize),
    /// Everything else, alphabetically.
    Middle,
    /// Named in the list of what comes last.
    Last(usize),
}

/// The rank of a resource.
pub fn rank(resource: &str) -> Rank {
    let at = |list: &[&str]| list.iter().position(|name| *name == resource);
    match (at(FIRST), at(LAST)) {
        (Some(index), _) => Rank::First(index),
        (None, Some(index)) => Rank::Last(index),
        (None, None) => Rank::Middle,
    }
}

/// Sorts resources into the order they are restored in.
pub fn sort(resources: &mut [String]) {
    resources.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
}

#[cfg(test)]
mod tests {
    use super::*;

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
        sort(&mut found);
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
}
