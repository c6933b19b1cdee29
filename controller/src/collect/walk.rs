//! The order in which collected objects are stored, and the list of what was.

use std::collections::{BTreeMap, HashMap, HashSet};

use jackline_policy::backup::{object::ObjectRef, resource::ordered};

use super::spool::Collection;

/// Deepest chain of needs that is followed: pod → claim → volume is the longest there is.
const DEPTH: usize = 8;

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
    for (kind, names) in first {
        let resource = collection
            .catalogue
            .resolve(kind)
            .unwrap_or_else(|| kind.clone());
        for name in ordered(names) {
            let (namespace, plain) = match name.split_once('/') {
                Some((namespace, plain)) => (Some(namespace.to_owned()), plain),
                None => (None, name.as_str()),
            };
            let wanted = ObjectRef {
                resource: resource.clone(),
                namespace,
                name: plain.to_owned(),
            };
            match collection
                .find(&wanted)
                .and_then(|index| Some((index, collection.items().get(index)?)))
            {
                Some((index, item)) => front.entry(item.resource).or_default().push(index),
                None => unknown.push(format!("{kind} {name}")),
            }
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
