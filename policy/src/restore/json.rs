//! Small readers for Kubernetes objects as JSON.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// The string at a JSON pointer.
pub fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str)
}

/// The time at a JSON pointer.
pub fn time(object: &Value, pointer: &str) -> Option<Timestamp> {
    text(object, pointer)?.parse().ok()
}

/// The array at a JSON pointer; absent and `null` are empty.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// `metadata.name`, empty where there is none.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name").unwrap_or_default()
}

/// `metadata.namespace`; absent and empty are `None`.
pub fn namespace(object: &Value) -> Option<&str> {
    text(object, "/metadata/namespace").filter(|found| !found.is_empty())
}

/// A label's value.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// An annotation's value.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// The kind of the object's controlling owner, or of its first owner.
pub fn owner_kind(object: &Value) -> Option<&str> {
    let owners = list(object, "/metadata/ownerReferences");
    owners
        .iter()
        .find(|owner| owner["controller"] == true)
        .or_else(|| owners.first())
        .and_then(|owner| owner["kind"].as_str())
}

/// The object at `pointer` as a map, made where it is absent. `None` where something else is in the way.
pub fn map_mut<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let mut at = object;
    for step in path {
        let map = at.as_object_mut()?;
        let next = map.entry((*step).to_owned()).or_insert(Value::Null);
        if next.is_null() {
            *next = Value::Object(Map::new());
        }
        at = next;
    }
    at.as_object_mut()
}

/// Removes `key` from the map at `path`, if both are there, and the map when nothing is left in it.
pub fn remove(object: &mut Value, path: &[&str], key: &str) -> Option<Value> {
    let pointer = path
        .iter()
        .fold(String::new(), |all, step| all + "/" + step);
    let map = object.pointer_mut(&pointer)?.as_object_mut()?;
    let removed = map.remove(key);
    if removed.is_some() && map.is_empty() && !path.is_empty() {
        let (last, parents) = path.split_last()?;
        let parent = parents
            .iter()
            .fold(String::new(), |all, step| all + "/" + step);
        object.pointer_mut(&parent)?.as_object_mut()?.remove(*last);
    }
    removed
}
