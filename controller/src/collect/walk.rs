//! The order in which collected objects are stored, and the list of what was.

use std::collections::{BTreeMap, HashMap, HashSet};

use jackline_policy::backup::{
    object::ObjectRef,
    resource::{Catalogue, ordered},
};

use super::spool::Collection;

/// Deepest chain of needs that is followed: pod → claim → volume is the longest there is.
const DEPTH: usize = 8;

/// The objects that `orderedResources` names, in their order, and how it names them.
pub fn in_order(
    catalogue: &Catalogue,
    first: &BTreeMap<String, String>,
) -> Vec<(ObjectRef, String)> {
    let of_kind = |(kind, names): (&String, &String)| {
        let resource = catalogue.resolve(kind).unwrap_or_else(|| kind.clone());
        let named = ordered(names).into_iter().map(|name| {
            let (namespace, plain) = match name.split_once('/') {
                Some((namespace, plain)) => (Some(namespace.to_owned()), plain),
                None => (None, name.as_str()),
            };
            let wanted = ObjectRef {
                resource: resource.clone(),
                namespace,
                name: plain.to_owned(),
            };
            (wanted, format!("{kind} {name}"))
        });
        named.collect::<Vec<_>>()
    };
    first.iter().flat_map(of_kind).collect()
}

/// The indices of all objects to store: kind by kind, in each kind first those that `orderedResources` names, every object after what
/// it needs. Also the names in `orderedResources` that are not there.
pub fn order(
    collection: &Collection,
    first: &BTreeMap<String, String>,
    left_out: &HashSet<usize>,
) -> (Vec<usize>, Vec<String>) {
    let mut needs: HashMap<usize, Vec<usize>> = HashMap::new();
    for (object, needed) in &collection.facts.needs {
        let Some(index) = collection.find(object) else {
            continue;
        };
        let needed = needed.iter().filter_map(|needed| collection.find(needed));
        needs.entry(index).or_default().extend(needed);
    }
    let mut by_kind: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, item) in collection.items().iter().enumerate() {
        by_kind.entry(item.resource).or_default().push(index);
    }
    let mut unknown = Vec::new();
    let mut front: HashMap<usize, Vec<usize>> = HashMap::new();
    for (wanted, name) in in_order(&collection.catalogue, first) {
        match collection
            .find(&wanted)
            .and_then(|index| Some((index, collection.items().get(index)?)))
        {
            Some((index, item)) => front.entry(item.resource).or_default().push(index),
            None => unknown.push(name),
        }
    }
    let mut walk = Walk {
        needs,
        seen: left_out.clone(),
        order: Vec::with_capacity(collection.items().len()),
    };
    for (kind, indices) in by_kind {
        for index in front
            .remove(&kind)
            .unwrap_or_default()
            .into_iter()
            .chain(indices)
        {
            walk.visit(index, 0);
        }
    }
    (walk.order, unknown)
}

struct Walk {
    needs: HashMap<usize, Vec<usize>>,
    seen: HashSet<usize>,
    order: Vec<usize>,
}

impl Walk {
    fn visit(&mut self, index: usize, depth: usize) {
        if depth > DEPTH || !self.seen.insert(index) {
            return;
        }
        for needed in self.needs.get(&index).cloned().unwrap_or_default() {
            self.visit(needed, depth + 1);
        }
        self.order.push(index);
    }
}

/// Kinds and names of the stored objects, as `<name>-resource-list.json.gz` has them.
pub fn resource_list(collection: &Collection, stored: &[usize]) -> BTreeMap<String, Vec<String>> {
    let mut list: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in stored
        .iter()
        .filter_map(|&index| collection.items().get(index))
    {
        let Some(resource) = collection.catalogue.resources().get(item.resource) else {
            continue;
        };
        let name = match &item.namespace {
            Some(namespace) => format!("{namespace}/{}", item.name),
            None => item.name.to_string(),
        };
        list.entry(format!("{}/{}", resource.api_version(), resource.kind))
            .or_default()
            .push(name);
    }
    list.values_mut().for_each(|names| names.sort());
    list
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jackline_policy::backup::{Catalogue, Resource};
    use serde_json::{Value, json};

    use super::*;
    use crate::collect::spool::{Page, Spool};

    fn resource(plural: &str, kind: &str, short: &str, namespaced: bool) -> Resource {
        Resource {
            version: "v1".to_owned(),
            plural: plural.to_owned(),
            short_names: vec![short.to_owned()],
            kind: kind.to_owned(),
            namespaced,
            ..Resource::default()
        }
    }

    /// Pods `a` to `c` of `shop`, of which `b` has a claim with a volume, and one `a` elsewhere; ConfigMaps `x` and `y`.
    fn collection() -> Collection {
        let catalogue = Catalogue::new(vec![
            resource("configmaps", "ConfigMap", "cm", true),
            resource(
                "persistentvolumeclaims",
                "PersistentVolumeClaim",
                "pvc",
                true,
            ),
            resource("persistentvolumes", "PersistentVolume", "pv", false),
            resource("pods", "Pod", "po", true),
        ]);
        let kinds = catalogue.resources().to_vec();
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path()).unwrap();
        let mut collection = Collection::new(catalogue, spool.reader().unwrap());
        let claim = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        let bound =
            |name: &str| json!({"spec": {"volumeName": name}, "status": {"phase": "Bound"}});
        let objects: [(&str, &str, &str, Value); 8] = [
            ("pods", "shop", "a", json!({})),
            ("pods", "shop", "b", json!({"spec": {"volumes": claim}})),
            ("pods", "shop", "c", json!({})),
            ("pods", "zoo", "a", json!({})),
            ("persistentvolumeclaims", "shop", "data", bound("disk")),
            ("persistentvolumes", "", "disk", json!({})),
            ("configmaps", "shop", "x", json!({})),
            ("configmaps", "shop", "y", json!({})),
        ];
        for (kind, namespace, name, mut object) in objects {
            object["metadata"] = json!({"name": name, "namespace": namespace});
            let mut page = Page::default();
            let index = kinds.iter().position(|known| known.plural == kind);
            let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
            page.facts.learn(kind, &object, None);
            let place = namespace.map(Arc::from);
            page.push(&spool, index.unwrap(), place, name, b"{}", &mut 0)
                .unwrap();
            collection.add(page);
        }
        collection
    }

    #[test]
    fn what_is_named_goes_first_and_after_what_it_needs() {
        let collection = collection();
        let pod = |namespace: &str, name: &str| ObjectRef {
            resource: "pods".to_owned(),
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
        };
        type Row<'a> = (
            &'a [(&'a str, &'a str)],
            &'a [ObjectRef],
            &'a str,
            &'a [&'a str],
        );
        let table: [Row<'_>; 7] = [
            (
                &[],
                &[],
                "shop/a disk shop/data shop/b shop/c zoo/a shop/x shop/y",
                &[],
            ),
            (
                &[("pods", "shop/c, shop/b")],
                &[],
                "shop/c disk shop/data shop/b shop/a zoo/a shop/x shop/y",
                &[],
            ),
            // What a kind is called is up to the user, and each kind has an order of its own.
            (
                &[("po", "zoo/a,shop/c"), ("ConfigMap", "shop/y")],
                &[],
                "zoo/a shop/c shop/a disk shop/data shop/b shop/y shop/x",
                &[],
            ),
            // Volumes come with the pods that need them, whatever is said of volumes.
            (
                &[("pv", "disk"), ("pvc", "shop/data")],
                &[],
                "shop/a disk shop/data shop/b shop/c zoo/a shop/x shop/y",
                &[],
            ),
            (
                &[("pods", "shop/nobody,a,shop/c"), ("unicorns", "u")],
                &[],
                "shop/c shop/a disk shop/data shop/b zoo/a shop/x shop/y",
                &["pods shop/nobody", "pods a", "unicorns u"],
            ),
            // Named twice is stored once.
            (
                &[("pods", "shop/c,shop/a,shop/c")],
                &[],
                "shop/c shop/a disk shop/data shop/b zoo/a shop/x shop/y",
                &[],
            ),
            // A pod whose hook forbids it is not stored although it is named; its claim is.
            (
                &[("pods", "shop/b,shop/c")],
                &[pod("shop", "b")],
                "shop/c shop/a zoo/a disk shop/data shop/x shop/y",
                &[],
            ),
        ];
        for (first, forbidden, expected, missing) in table {
            let first: BTreeMap<String, String> = first
                .iter()
                .map(|(kind, names)| ((*kind).to_owned(), (*names).to_owned()))
                .collect();
            let left_out = forbidden
                .iter()
                .map(|pod| collection.find(pod).unwrap())
                .collect();
            let (order, unknown) = order(&collection, &first, &left_out);
            let names: Vec<String> = order
                .iter()
                .map(|&index| &collection.items()[index])
                .map(|item| match &item.namespace {
                    Some(namespace) => format!("{namespace}/{}", item.name),
                    None => item.name.to_string(),
                })
                .collect();
            assert_eq!(names.join(" "), expected, "{first:?}");
            assert_eq!(unknown, missing, "{first:?}");
        }
    }
}
