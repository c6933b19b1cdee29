//! What happens to an object that is there already (velero-compat §7.3). Nothing is ever deleted and made again.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::json::{list, map_mut, name};

/// The restore's `existingResourcePolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExistingPolicy {
    /// Absent or empty: leave it and warn.
    #[default]
    Unset,
    /// `none`: leave it and warn.
    None,
    /// `update`: patch it to the content of the backup.
    Update,
}

impl ExistingPolicy {
    /// Reads the field; any other value is refused by name.
    pub fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("") => Ok(Self::Unset),
            Some("none") => Ok(Self::None),
            Some("update") => Ok(Self::Update),
            Some(other) => Err(format!(
                "Invalid ExistingResourcePolicy: {other:?}, allowed are none and update"
            )),
        }
    }
}

/// What to do with the object that exists.
#[derive(Debug, Clone, PartialEq)]
pub enum Conflict {
    /// It is as the backup has it: nothing to do.
    Same,
    /// Leave it, with this warning.
    Leave(String),
    /// Merge-patch it.
    Patch(Value),
}

/// Decides on an existing object. Both sides are prepared the same way (metadata reset, per-kind actions, no status, no labels of
/// a restore), so that they differ only where their content does.
pub fn decide(
    resource: &str,
    kind: &str,
    wanted: &Value,
    existing: &Value,
    policy: ExistingPolicy,
) -> Conflict {
    if wanted == existing || resource == "namespaces" {
        return Conflict::Same;
    }
    if resource == "serviceaccounts" {
        return match merged_account(wanted, existing) {
            Some(patch) => Conflict::Patch(patch),
            None => Conflict::Same,
        };
    }
    let difference =
        "already exists. Warning: the in-cluster version is different than the backed-up version";
    match policy {
        ExistingPolicy::Unset => Conflict::Leave(format!(
            "could not restore, {kind}:{} {difference}",
            name(wanted)
        )),
        ExistingPolicy::None => Conflict::Leave(format!(
            "could not restore, {kind} {:?} {difference}",
            name(wanted)
        )),
        ExistingPolicy::Update => {
            let mut wanted = wanted.clone();
            if existing["metadata"]["labels"].is_object() {
                // The restore adds its labels to the patch: one null for all labels would not outlast that.
                map_mut(&mut wanted, &["metadata", "labels"]);
            }
            Conflict::Patch(merge_patch(existing, &wanted))
        }
    }
}

/// A service account keeps what it has and gets what the backup has beside it.
fn merged_account(wanted: &Value, existing: &Value) -> Option<Value> {
    let mut patch = Map::new();
    for field in ["secrets", "imagePullSecrets"] {
        let pointer = format!("/{field}");
        let have = list(existing, &pointer);
        let known: BTreeSet<&str> = have
            .iter()
            .filter_map(|entry| entry["name"].as_str())
            .collect();
        let new: Vec<Value> = list(wanted, &pointer)
            .iter()
            .filter(|entry| {
                entry["name"]
                    .as_str()
                    .is_some_and(|name| !known.contains(name))
            })
            .cloned()
            .collect();
        if !new.is_empty() {
            patch.insert(field.to_owned(), Value::Array([have, &new].concat()));
        }
    }
    for field in ["labels", "annotations"] {
        let have = existing["metadata"][field].as_object();
        let new: Map<String, Value> = wanted["metadata"][field]
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| have.is_none_or(|have| !have.contains_key(*key)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !new.is_empty() {
            let metadata = patch.entry("metadata").or_insert_with(|| json!({}));
            metadata[field] = Value::Object(new);
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The JSON merge patch (RFC 7386) that turns `from` into `to`.
pub fn merge_patch(from: &Value, to: &Value) -> Value {
    let (Some(before), Some(after)) = (from.as_object(), to.as_object()) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in after {
        match before.get(key) {
            Some(old) if old == value => {}
            Some(old) => {
                patch.insert(key.clone(), merge_patch(old, value));
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::super::meta::{Labels, put_labels};
    use super::*;

    fn map(data: &Value) -> Value {
        json!({"metadata": {"name": "a"}, "data": data})
    }

    #[test]
    fn the_three_policies() {
        let (wanted, existing) = (
            map(&json!({"k": "backup"})),
            map(&json!({"k": "cluster", "x": "1"})),
        );
        let on = |policy| decide("configmaps", "ConfigMap", &wanted, &existing, policy);
        assert_eq!(
            on(ExistingPolicy::Unset),
            Conflict::Leave(
                "could not restore, ConfigMap:a already exists. Warning: the in-cluster version is different than the backed-up version"
                    .to_owned()
            )
        );
        let Conflict::Leave(text) = on(ExistingPolicy::None) else {
            panic!()
        };
        assert!(
            text.starts_with("could not restore, ConfigMap \"a\" already exists"),
            "{text}"
        );
        assert_eq!(
            on(ExistingPolicy::Update),
            Conflict::Patch(json!({"data": {"k": "backup", "x": null}}))
        );
        assert_eq!(
            decide(
                "configmaps",
                "ConfigMap",
                &wanted,
                &wanted,
                ExistingPolicy::Unset
            ),
            Conflict::Same
        );
        assert_eq!(
            decide(
                "namespaces",
                "Namespace",
                &wanted,
                &existing,
                ExistingPolicy::Update
            ),
            Conflict::Same
        );
    }

    #[test]
    fn labels_added_since_go_also_when_the_backup_has_none_and_the_restore_adds_its_own() {
        let wanted = map(&json!({"k": "backup"}));
        let mut existing = wanted.clone();
        existing["metadata"]["labels"] = json!({"since": "yes"});
        let decided = decide(
            "configmaps",
            "ConfigMap",
            &wanted,
            &existing,
            ExistingPolicy::Update,
        );
        let Conflict::Patch(mut patch) = decided else {
            panic!("{decided:?}")
        };
        let labels = Labels {
            backup: ("of", "b"),
            restore: ("by", "r"),
        };
        put_labels(&mut patch, labels);
        apply(&mut existing, &patch);
        assert_eq!(
            existing["metadata"]["labels"],
            json!({"of": "b", "by": "r"})
        );
    }

    #[test]
    fn a_service_account_is_merged_whatever_the_policy() {
        let wanted = json!({"metadata": {"name": "a", "labels": {"b": "2", "both": "backup"}},
            "imagePullSecrets": [{"name": "one"}, {"name": "two"}]});
        let existing = json!({"metadata": {"name": "a", "labels": {"both": "cluster"}},
            "imagePullSecrets": [{"name": "one"}], "secrets": [{"name": "s"}]});
        assert_eq!(
            decide(
                "serviceaccounts",
                "ServiceAccount",
                &wanted,
                &existing,
                ExistingPolicy::Unset
            ),
            Conflict::Patch(
                json!({"metadata": {"labels": {"b": "2"}}, "imagePullSecrets": [{"name": "one"}, {"name": "two"}]})
            )
        );
        let nothing_new = json!({"metadata": {"name": "a"}});
        assert_eq!(
            decide(
                "serviceaccounts",
                "ServiceAccount",
                &nothing_new,
                &existing,
                ExistingPolicy::Update
            ),
            Conflict::Same
        );
    }

    #[test]
    fn policies_are_read() {
        assert_eq!(ExistingPolicy::parse(None), Ok(ExistingPolicy::Unset));
        assert_eq!(
            ExistingPolicy::parse(Some("none")),
            Ok(ExistingPolicy::None)
        );
        assert_eq!(
            ExistingPolicy::parse(Some("update")),
            Ok(ExistingPolicy::Update)
        );
        assert!(
            ExistingPolicy::parse(Some("recreate"))
                .unwrap_err()
                .contains("recreate")
        );
    }

    proptest::proptest! {
        /// Applying the patch to `from` gives `to`, for any pair of objects without nulls (a merge patch cannot store one).
        #[test]
        fn a_patch_leads_where_it_should(from in tree(), to in tree()) {
            let mut patched = from.clone();
            apply(&mut patched, &merge_patch(&from, &to));
            proptest::prop_assert_eq!(patched, to);
        }
    }

    fn apply(target: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let map = target.as_object_mut().unwrap();
        for (key, value) in patch {
            if value.is_null() {
                map.remove(key);
            } else {
                apply(map.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }

    fn tree() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
            proptest::collection::vec(0..3u8, 0..3).prop_map(|list| json!(list)),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }
}
