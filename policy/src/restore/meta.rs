//! What is taken off a stored object before it is created again, and the labels it gets (velero-compat §7.3).

use serde_json::{Map, Value};

use super::json::{annotation, label, map_mut};
use crate::backup::names::Names;

/// What of an object's metadata survives.
const KEPT: &[&str] = &["name", "namespace", "labels", "annotations", "finalizers"];

/// Annotation with which an object decides for itself whether its status is restored.
pub const RESTORE_STATUS: &str = "velero.io/restore-status";

/// Labels that tie a restored object to its backup and restore; the values are label values already.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Key and value of the backup's label.
    pub backup: (&'a str, &'a str),
    /// Key and value of the restore's label.
    pub restore: (&'a str, &'a str),
}

/// Takes identity, ownership and history off an object: what is left can be created anywhere.
pub fn reset(object: &mut Value) {
    if let Some(metadata) = map_mut(object, &["metadata"]) {
        let kept: Map<String, Value> = std::mem::take(metadata)
            .into_iter()
            .filter(|(key, value)| KEPT.contains(&key.as_str()) && !value.is_null())
            .collect();
        *metadata = kept;
    }
}

/// Takes the status off and returns it.
pub fn take_status(object: &mut Value) -> Option<Value> {
    object
        .as_object_mut()?
        .remove("status")
        .filter(|status| !status.is_null())
}

/// Whether the object's status is to be restored: its own annotation decides, else the restore's `restoreStatus`.
pub fn keeps_status(object: &Value, admitted: bool) -> bool {
    let own = annotation(object, RESTORE_STATUS).map(|own| own.trim().to_ascii_lowercase());
    match own.as_deref() {
        Some("true") => true,
        Some("false") => false,
        _ => admitted,
    }
}

/// Whether a restore's `restoreStatus` has the status of a kind restored: unless it names kinds, that of all but the excluded. What
/// cannot be a name or a glob admits nothing.
pub fn admits_status(included: &[String], excluded: &[String], kind: &str) -> bool {
    Names::of_hook(included, excluded).is_ok_and(|names| names.includes(kind))
}

/// Puts the two labels on.
pub fn put_labels(object: &mut Value, labels: Labels<'_>) {
    if let Some(map) = map_mut(object, &["metadata", "labels"]) {
        for (key, value) in [labels.backup, labels.restore] {
            map.insert(key.to_owned(), Value::String(value.to_owned()));
        }
    }
}

/// Whether the object carries this restore's label.
pub fn is_of_restore(object: &Value, labels: Labels<'_>) -> bool {
    label(object, labels.restore.0) == Some(labels.restore.1)
}

/// Puts the object into `namespace`.
pub fn put_namespace(object: &mut Value, namespace: &str) {
    if let Some(map) = map_mut(object, &["metadata"]) {
        map.insert("namespace".to_owned(), Value::String(namespace.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LABELS: Labels<'_> = Labels {
        backup: ("velero.io/backup-name", "b"),
        restore: ("velero.io/restore-name", "r"),
    };

    #[test]
    fn identity_goes_and_content_stays() {
        let mut object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "1", "generation": 3,
                "generateName": "a-", "creationTimestamp": "t", "deletionTimestamp": "t", "deletionGracePeriodSeconds": 3,
                "ownerReferences": [{}], "managedFields": [{}], "selfLink": "/x",
                "labels": {"app": "x"}, "annotations": {"k": "v"}, "finalizers": ["f"]},
            "data": {"k": "v"}, "status": {"phase": "x"}
        });
        reset(&mut object);
        assert_eq!(take_status(&mut object), Some(json!({"phase": "x"})));
        put_labels(&mut object, LABELS);
        put_namespace(&mut object, "other");
        assert_eq!(
            object,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "a", "namespace": "other", "finalizers": ["f"], "annotations": {"k": "v"},
                    "labels": {"app": "x", "velero.io/backup-name": "b", "velero.io/restore-name": "r"}},
                "data": {"k": "v"}
            })
        );
        assert!(is_of_restore(&object, LABELS));
    }

    #[test]
    fn labels_are_made_where_there_were_none() {
        for mut object in [
            json!({"metadata": {"name": "a"}}),
            json!({"metadata": {"labels": null}}),
            json!({}),
        ] {
            put_labels(&mut object, LABELS);
            assert!(is_of_restore(&object, LABELS), "{object}");
        }
    }

    #[test]
    fn an_objects_own_word_on_its_status_wins() {
        let with = |value: &str| json!({"metadata": {"annotations": {(RESTORE_STATUS): value}}});
        assert!(keeps_status(&with("true"), false));
        assert!(!keeps_status(&with("false"), true));
        assert!(keeps_status(&json!({}), true));
        assert!(keeps_status(&with(" True\n"), false));
        assert!(!keeps_status(&with("FALSE "), true));
        assert!(!keeps_status(&with("perhaps"), false));
        assert!(keeps_status(&with("perhaps"), true));
    }

    #[test]
    fn without_names_the_status_of_every_kind_is_restored() {
        let names =
            |list: &str| -> Vec<String> { list.split_whitespace().map(str::to_owned).collect() };
        let table = [
            ("", "", true),
            ("*", "", true),
            ("", "jobs.batch", false),
            ("pods", "", false),
            ("pods jobs.batch", "", true),
            ("*.batch", "", true),
            ("*", "*.batch", false),
            ("[", "", false),
        ];
        for (included, excluded, expected) in table {
            let admitted = admits_status(&names(included), &names(excluded), "jobs.batch");
            assert_eq!(admitted, expected, "{included}|{excluded}");
        }
    }
}
