//! From text to policies. Unknown fields are refused, and null is nothing, as Velero's reader has it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use strum::VariantNames;

use super::{Action, Conditions, TYPES, VolumePolicies, VolumePolicy};
use crate::{Invalid, Yaml, labels::Selector, quantity};

impl VolumePolicies {
    /// Checks what a ConfigMap says.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub fn parse(source: &str, yaml: Yaml<'_>) -> Result<Self, String> {
        policies(&yaml(source)?).map_err(|error| error.to_string())
    }
}

/// The fields of an object.
struct Fields<'a> {
    path: String,
    map: Option<&'a Map<String, Value>>,
}

impl<'a> Fields<'a> {
    fn of(path: String, value: &'a Value, known: &[&str]) -> Result<Self, Invalid> {
        let map = match value {
            Value::Object(map) => Some(map),
            Value::Null => None,
            other => return Err(Invalid::raw(named(&path), other, "an object")),
        };
        let mut keys = map.into_iter().flat_map(Map::keys);
        match keys.find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(Invalid::new(named(&path), key, known.join(", "))),
            None => Ok(Self { path, map }),
        }
    }

    fn path(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn get(&self, key: &str) -> &'a Value {
        let value = self.map.and_then(|map| map.get(key));
        value.unwrap_or(&Value::Null)
    }

    fn text(&self, key: &str) -> Result<String, Invalid> {
        text(&self.path(key), self.get(key))
    }

    /// The elements of a list, each with its path.
    fn list(&self, key: &str) -> Result<Vec<(String, &'a Value)>, Invalid> {
        let path = self.path(key);
        match self.get(key) {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => {
                let list = list.iter().enumerate();
                Ok(list
                    .map(|(at, value)| (format!("{path}[{at}]"), value))
                    .collect())
            }
            other => Err(Invalid::raw(path, other, "a list")),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, Invalid> {
        let list = self.list(key)?.into_iter();
        list.map(|(path, value)| text(&path, value)).collect()
    }

    fn map(&self, key: &str) -> Result<BTreeMap<String, String>, Invalid> {
        let path = self.path(key);
        match self.get(key) {
            Value::Null => Ok(BTreeMap::new()),
            Value::Object(map) => {
                let pairs = map.iter();
                let pairs = pairs.map(|(key, value)| {
                    let value = text(&format!("{path}.{key}"), value)?;
                    Ok((key.clone(), value))
                });
                pairs.collect()
            }
            other => Err(Invalid::raw(path, other, "an object with text")),
        }
    }
}

/// The path of a field, for a message.
fn named(path: &str) -> &str {
    if path.is_empty() { "the whole" } else { path }
}

/// A scalar; numbers and truths are text as well where text is meant.
fn text(path: &str, value: &Value) -> Result<String, Invalid> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) => Ok(value.to_string()),
        other => Err(Invalid::raw(path, other, "text")),
    }
}

fn policies(value: &Value) -> Result<VolumePolicies, Invalid> {
    let fields = Fields::of(String::new(), value, &["version", "volumePolicies"])?;
    let version = fields.text("version")?;
    if version != "v1" {
        return Err(Invalid::new("version", version, "v1"));
    }
    let mut all = VolumePolicies::default();
    for (path, value) in fields.list("volumePolicies")? {
        let policy = Fields::of(path, value, &["conditions", "action"])?;
        let action = action(policy.path("action"), policy.get("action"))?;
        let conditions = conditions(policy.path("conditions"), policy.get("conditions"))?;
        let known = |found: &&String| TYPES.contains(&found.as_str());
        // One line, however many there are: the message is cut, and goes into a log.
        let unknown = conditions.types.iter().filter(|found| !known(found));
        let unknown: Vec<&str> = unknown.map(String::as_str).collect();
        if !unknown.is_empty() {
            let path = policy.path("conditions.volumeTypes");
            let doubt = Invalid::new(path, unknown.join(", "), TYPES.join(", "));
            all.doubts.push(format!("{doubt}; it matches no volume"));
        }
        all.policies.push(VolumePolicy { conditions, action });
    }
    Ok(all)
}

fn action(path: String, value: &Value) -> Result<Action, Invalid> {
    // Parameters are for the plugins of a Velero server.
    let fields = Fields::of(path, value, &["type", "parameters"])?;
    let kind = fields.text("type")?;
    let action = kind.parse();
    action.map_err(|_| Invalid::new(fields.path("type"), kind, Action::VARIANTS.join(", ")))
}

fn conditions(path: String, value: &Value) -> Result<Conditions, Invalid> {
    let known = [
        "capacity",
        "storageClass",
        "nfs",
        "csi",
        "volumeTypes",
        "pvcLabels",
    ];
    let fields = Fields::of(path, value, &known)?;
    let (nfs, csi) = (fields.get("nfs"), fields.get("csi"));
    let labels = fields.map("pvcLabels")?;
    let labels = labels
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()));
    Ok(Conditions {
        capacity: capacity(&fields.path("capacity"), &fields.text("capacity")?)?,
        storage_classes: fields.texts("storageClass")?,
        nfs: match nfs {
            Value::Null => None,
            nfs => {
                let nfs = Fields::of(fields.path("nfs"), nfs, &["server", "path"])?;
                Some((nfs.text("server")?, nfs.text("path")?))
            }
        },
        csi: match csi {
            Value::Null => None,
            csi => {
                let csi = Fields::of(fields.path("csi"), csi, &["driver", "volumeAttributes"])?;
                let (driver, attributes) = (csi.text("driver")?, csi.map("volumeAttributes")?);
                if driver.is_empty() && !attributes.is_empty() {
                    let allowed = "the name of a driver, because there are volumeAttributes";
                    return Err(Invalid::new(csi.path("driver"), driver, allowed));
                }
                Some((driver, attributes))
            }
        },
        types: fields.texts("volumeTypes")?,
        labels: Selector::new("pvcLabels", labels, [])?,
    })
}

/// `10Gi,100Gi`, of which either may be missing.
fn capacity(path: &str, range: &str) -> Result<(u64, u64), Invalid> {
    let allowed =
        "two quantities with a comma between them, such as \"10Gi,100Gi\", \"10Gi,\" or \",100Gi\"";
    let invalid = || Invalid::new(path, range, allowed);
    if range.is_empty() {
        return Ok((0, 0));
    }
    let bound = |text: &str| match text.trim() {
        "" => Ok(0),
        text => quantity::parse(text).ok_or_else(invalid),
    };
    let (from, to) = range.split_once(',').ok_or_else(invalid)?;
    let (from, to) = (bound(from)?, bound(to)?);
    if to != 0 && from > to {
        let allowed = "a first quantity that is not more than the second";
        return Err(Invalid::new(path, range, allowed));
    }
    Ok((from, to))
}
