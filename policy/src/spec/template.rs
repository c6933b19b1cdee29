//! `spec.template`: the rest of Velero's BackupSpec, as JSON.

use serde_json::{Map, Value};

use crate::Invalid;

/// A template whose fields do not contradict what the policy itself decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template(Map<String, Value>);

/// Fields that a policy decides by itself, and where.
const DECIDED: [(&str, &str); 3] = [
    ("includedNamespaces", "spec.namespaces"),
    ("excludedNamespaces", "spec.namespaces"),
    ("storageLocation", "spec.storageLocation"),
];

impl Template {
    /// `template` is the object as JSON; fields that are null or absent are the same.
    ///
    /// # Errors
    /// A field that the policy decides elsewhere.
    pub fn new(field: &str, template: Value) -> Result<Self, Invalid> {
        let mut fields = match template {
            Value::Null => Map::new(),
            Value::Object(fields) => fields,
            other => return Err(Invalid::raw(field, other, "an object")),
        };
        fields.retain(|_, value| !value.is_null());
        for (name, instead) in DECIDED {
            if let Some(found) = fields.get(name) {
                return Err(Invalid::raw(
                    format!("{field}.{name}"),
                    found,
                    format!("{instead} instead"),
                ));
            }
        }
        Ok(Self(fields))
    }

    /// The fields of Velero's BackupSpec that were given.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Whether the policy's backups take every volume that is not excluded (`defaultVolumesToFsBackup`, or its old name).
    pub fn opt_out(&self) -> bool {
        let is_true = |name| self.0.get(name).and_then(Value::as_bool).unwrap_or(false);
        is_true("defaultVolumesToFsBackup") || is_true("defaultVolumesToRestic")
    }

    pub(super) fn has_ttl(&self) -> bool {
        !matches!(
            self.0.get("ttl").and_then(Value::as_str),
            None | Some("0s" | "0" | "0h0m0s" | "")
        )
    }

    /// A BackupPolicy's template: hooks and selectors of a tenant would run with the controller's rights.
    pub(super) fn labels_only(&self) -> Result<(), Invalid> {
        for (name, value) in &self.0 {
            let allowed = match (name.as_str(), value.as_object()) {
                ("metadata", Some(metadata)) => metadata.keys().all(|key| key == "labels"),
                _ => false,
            };
            if !allowed {
                return Err(Invalid::raw(
                    format!("spec.template.{name}"),
                    value,
                    "metadata.labels only in a BackupPolicy",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_policy_decides_is_refused() {
        let error =
            Template::new("spec.template", json!({"includedNamespaces": ["a"]})).unwrap_err();
        assert_eq!(error.field, "spec.template.includedNamespaces");
        assert!(Template::new("spec.template", json!({"includedNamespaces": null})).is_ok());
    }

    #[test]
    fn tenants_may_set_labels_only() {
        let labels = Template::new("t", json!({"metadata": {"labels": {"a": "b"}}})).unwrap();
        assert!(labels.labels_only().is_ok());
        let hooks = Template::new("t", json!({"hooks": {"resources": []}})).unwrap();
        assert_eq!(
            hooks.labels_only().unwrap_err().field,
            "spec.template.hooks"
        );
    }

    #[test]
    fn opt_out_is_known_by_both_names() {
        for (template, expected) in [
            (json!({}), false),
            (json!({"defaultVolumesToFsBackup": false}), false),
            (json!({"defaultVolumesToFsBackup": true}), true),
            (json!({"defaultVolumesToRestic": true}), true),
        ] {
            assert_eq!(Template::new("t", template).unwrap().opt_out(), expected);
        }
    }
}
