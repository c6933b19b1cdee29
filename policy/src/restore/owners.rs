//! Who owned which fields of an object in its backup: `metadata.managedFields`, which tell a server-side apply what conflicts with what.
//!
//! To the API server all fields of a new object belong to whoever makes it; to give them back takes a second write, which webhooks and
//! watches see too. But most objects were made and changed by one manager alone, and one that is made in that manager's name has the
//! same owner at once: but for the time, which is that of the restore, and for the labels of the restore, which are then the manager's too.

use jiff::SignedDuration;
use serde_json::Value;

use super::{
    json::{list, remove, time},
    meta::Labels,
};

/// What the API server takes as a manager's name at most (`FieldManagerMaxLength`).
const LONGEST: usize = 128;

/// The manager in whose name the object may be made: the only one that the backup's `managedFields` know, if it never applied.
pub fn sole(managers: &Value) -> Option<&str> {
    let [entry] = managers.as_array()?.as_slice() else {
        return None;
    };
    let name = entry["manager"].as_str()?;
    let printable = |letter: char| letter == ' ' || letter.is_ascii_graphic();
    let usable = (1..=LONGEST).contains(&name.len()) && name.chars().all(printable);
    let updates = entry["operation"] == "Update" && entry.get("subresource").is_none();
    (usable && updates).then_some(name)
}

/// Whether the object's owners are those of the backup. Times do not count, nor who owns the labels that a restore puts on.
pub fn are_back(managers: &Value, object: &Value, labels: Labels<'_>) -> bool {
    let found = list(object, "/metadata/managedFields").iter();
    let found = found.map(|entry| comparable(entry, labels));
    let wanted = managers.as_array().into_iter().flatten();
    found.eq(wanted.map(|entry| comparable(entry, labels)))
}

/// Whether the object is as `manager` has made it: nobody else has written to it, and `manager` not since. An entry has the time of its
/// manager's last change, in whole seconds.
pub fn is_as_made(object: &Value, manager: &str) -> bool {
    let written = time(object, "/metadata/managedFields/0/time");
    let made = time(object, "/metadata/creationTimestamp");
    let at_once = written.zip(made).is_some_and(|(written, made)| {
        written.duration_since(made).abs() <= SignedDuration::from_secs(1)
    });
    at_once && sole(&object["metadata"]["managedFields"]) == Some(manager)
}

/// Whether `manager` wrote the status that the object has.
pub fn has_status_of(object: &Value, manager: &str) -> bool {
    let mut written = written_by(object, manager);
    written.any(|entry| entry["subresource"] == "status")
}

/// Whether the object has content that `manager` wrote, not only labels and annotations: it made the object in its own name, and has not
/// given the fields back to those who owned them in the backup.
pub fn has_content_of(object: &Value, manager: &str) -> bool {
    let mut written = written_by(object, manager);
    written.any(|entry| {
        let fields = entry["fieldsV1"].as_object();
        let mut fields = fields.into_iter().flatten();
        entry.get("subresource").is_none() && fields.any(|(field, _)| field != "f:metadata")
    })
}

fn written_by<'a>(object: &'a Value, manager: &'a str) -> impl Iterator<Item = &'a Value> {
    let entries = list(object, "/metadata/managedFields").iter();
    entries.filter(move |entry| entry["manager"] == manager)
}

fn comparable(entry: &Value, labels: Labels<'_>) -> Value {
    const METADATA: &[&str] = &["fieldsV1", "f:metadata"];
    const LABELS: &[&str] = &["fieldsV1", "f:metadata", "f:labels"];
    let mut entry = entry.clone();
    remove(&mut entry, &[], "time");
    for (key, _) in [labels.backup, labels.restore] {
        remove(&mut entry, LABELS, &format!("f:{key}"));
    }
    // The map itself, which may have been made for them.
    let own = entry.pointer("/fieldsV1/f:metadata/f:labels");
    if own
        .and_then(Value::as_object)
        .is_some_and(|own| own.keys().eq(["."]))
    {
        remove(&mut entry, METADATA, "f:labels");
    }
    entry
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LABELS: Labels<'_> = Labels {
        backup: ("velero.io/backup-name", "b"),
        restore: ("velero.io/restore-name", "r"),
    };

    fn entry(manager: &str) -> Value {
        json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {".": {}, "f:k": {}}}, "time": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn one_that_alone_updated_an_object_may_make_it() {
        let mut applied = entry("argocd");
        applied["operation"] = json!("Apply");
        let mut status = entry("kubelet");
        status["subresource"] = json!("status");
        let long = "m".repeat(129);
        for (managers, expected) in [
            (json!([entry("kubectl-create")]), Some("kubectl-create")),
            (json!([entry(&long[1..])]), Some(&long[1..])),
            (json!([entry(&long)]), None),
            (json!([entry("a b")]), Some("a b")),
            (json!([entry("")]), None),
            (json!([entry("\u{e9}")]), None),
            (json!([entry("a\nb")]), None),
            (json!([entry("a"), entry("b")]), None),
            (json!([applied]), None),
            (json!([status]), None),
            (json!([{}]), None),
            (json!([]), None),
            (json!(null), None),
            (json!("kubectl"), None),
        ] {
            assert_eq!(sole(&managers), expected, "{managers}");
        }
    }

    #[test]
    fn who_wrote_what_tells_how_far_an_earlier_run_came() {
        let content = json!({"manager": "jackline", "operation": "Update", "fieldsV1": {"f:metadata": {}, "f:spec": {}}});
        let status = json!({"manager": "jackline", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}});
        let note =
            json!({"manager": "jackline", "operation": "Update", "fieldsV1": {"f:metadata": {}}});
        let other =
            json!({"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {}}});
        let their = json!({"manager": "cloud", "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}});
        for (entries, has_content, has_status) in [
            (json!([content, their]), true, false),
            (json!([content, status]), true, true),
            (json!([other, note, their]), false, false),
            (json!(null), false, false),
        ] {
            let object = json!({"metadata": {"managedFields": entries}});
            assert_eq!(has_content_of(&object, "jackline"), has_content, "{object}");
            assert_eq!(has_status_of(&object, "jackline"), has_status, "{object}");
        }
    }

    #[test]
    fn what_is_written_to_later_is_not_as_it_was_made() {
        for (created, others, expected) in [
            ("2026-01-01T00:00:00Z", 0, true),
            ("2025-12-31T23:59:59Z", 0, true),
            ("2026-01-01T00:00:01Z", 0, true),
            // Its manager has changed it, or has its fields of the backup back.
            ("2025-12-31T23:59:58Z", 0, false),
            ("2026-01-01T00:00:02Z", 0, false),
            ("", 0, false),
            ("2026-01-01T00:00:00Z", 1, false),
        ] {
            let mut entries = vec![entry("m")];
            entries.extend((0..others).map(|_| entry("other")));
            let object =
                json!({"metadata": {"creationTimestamp": created, "managedFields": entries}});
            assert_eq!(is_as_made(&object, "m"), expected, "{object}");
            assert!(!is_as_made(&object, "n"), "{object}");
        }
    }

    #[test]
    fn times_and_labels_of_restores_make_no_other_owner() {
        let of = |metadata: Value| {
            let mut entry = entry("m");
            entry["time"] = json!("2026-02-02T00:00:00Z");
            if !metadata.is_null() {
                entry["fieldsV1"]["f:metadata"] = metadata;
            }
            entry
        };
        let restored =
            json!({".": {}, "f:velero.io/backup-name": {}, "f:velero.io/restore-name": {}});
        let mixed = json!({".": {}, "f:app": {}, "f:velero.io/backup-name": {}, "f:velero.io/restore-name": {}});
        let notes = json!({"f:annotations": {".": {}, "f:n": {}}});
        let noted = json!({"f:annotations": {".": {}, "f:n": {}}, "f:labels": restored});
        let (restored, mixed) = (json!({"f:labels": restored}), json!({"f:labels": mixed}));
        let app = json!({"f:labels": {".": {}, "f:app": {}}});
        for (backup, made, expected) in [
            (json!(null), json!(null), true),
            (json!(null), restored.clone(), true),
            (restored.clone(), restored.clone(), true),
            (app.clone(), mixed.clone(), true),
            (notes, noted, true),
            (app.clone(), restored, false),
            (json!(null), mixed, false),
            (json!(null), app, false),
        ] {
            let object = json!({"metadata": {"managedFields": [of(made)]}});
            let managers = json!([of(backup)]);
            assert_eq!(
                are_back(&managers, &object, LABELS),
                expected,
                "{managers} {object}"
            );
        }
        let two = json!({"metadata": {"managedFields": [entry("m"), entry("n")]}});
        assert!(!are_back(&json!([entry("m")]), &two, LABELS));
        assert!(!are_back(&json!([entry("m")]), &json!({}), LABELS));
        assert!(!are_back(
            &json!([entry("n")]),
            &json!({"metadata": {"managedFields": [entry("m")]}}),
            LABELS
        ));
    }
}
