//! What a ConfigMap wants of the init container `restore-wait` (velero-compat §6.7): resources and a security context. What it says of
//! image and command is not for this waiter, which is not Velero's program.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::hook::go_bool;
use crate::{Invalid, Yaml, quantity};

/// What stands for the keys that are left out where others are there, as at Velero.
const CPU: &str = "100m";
const MEMORY: &str = "128Mi";

/// How the waiter runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// `requests` and `limits`. `None`: those of the pod's first container.
    pub resources: Option<Value>,
    /// For pods whose first container has none.
    pub security: Option<Map<String, Value>>,
}

impl Settings {
    /// Reads the data of a ConfigMap. What cannot be used is named, and the default stands.
    pub fn parse(data: &BTreeMap<String, String>, yaml: Yaml<'_>) -> (Self, Vec<String>) {
        let mut settings = Self::default();
        let mut wrong = Vec::new();
        match resources(data) {
            Ok(resources) => settings.resources = resources,
            Err(why) => wrong.push(why.to_string()),
        }
        match security(data, yaml) {
            Ok(security) => settings.security = security,
            Err(why) => wrong.push(why),
        }
        (settings, wrong)
    }
}

/// The text of a key, unless it is empty.
fn text<'a>(data: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    let text = data.get(key).map(String::as_str);
    text.filter(|text| !text.is_empty())
}

fn resources(data: &BTreeMap<String, String>) -> Result<Option<Value>, Invalid> {
    let kinds = [
        ("cpu", "cpuRequest", "cpuLimit", CPU),
        ("memory", "memRequest", "memLimit", MEMORY),
    ];
    let said = |key: &str| text(data, key).is_some();
    if !kinds.iter().any(|kind| said(kind.1) || said(kind.2)) {
        return Ok(None);
    }
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (name, request_key, limit_key, default) in kinds {
        let read = |key: &str| {
            let found = text(data, key).unwrap_or(default);
            let allowed = "a quantity, such as 100m or 128Mi";
            let amount =
                quantity::thousandths(found).ok_or_else(|| Invalid::new(key, found, allowed))?;
            Ok::<_, Invalid>((found, amount))
        };
        let (request, limit) = (read(request_key)?, read(limit_key)?);
        // Nothing is no limit.
        if limit.1 > 0 && request.1 > limit.1 {
            let allowed = format!("not more than {limit_key}, which is {}", limit.0);
            return Err(Invalid::new(request_key, request.0, allowed));
        }
        for (list, (found, amount)) in [(&mut requests, request), (&mut limits, limit)] {
            if amount > 0 {
                list.insert(name.to_owned(), json!(found));
            }
        }
    }
    Ok(Some(json!({"requests": requests, "limits": limits})))
}

/// The core API's, its own fields read strictly.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SecurityContext {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_privilege_escalation: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_armor_profile: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    privileged: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proc_mount: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_only_root_filesystem: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_group: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_non_root: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_as_user: Option<i64>,
    #[serde(rename = "seLinuxOptions", skip_serializing_if = "Option::is_none")]
    se_linux_options: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp_profile: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    windows_options: Option<Map<String, Value>>,
}

/// `secCtx` on top of the single keys.
fn security(
    data: &BTreeMap<String, String>,
    yaml: Yaml<'_>,
) -> Result<Option<Map<String, Value>>, String> {
    let mut all = Map::new();
    for (key, field) in [
        ("secCtxRunAsUser", "runAsUser"),
        ("secCtxRunAsGroup", "runAsGroup"),
    ] {
        if let Some(found) = text(data, key) {
            let id: i64 = found
                .parse()
                .map_err(|_| Invalid::new(key, found, "a number").to_string())?;
            all.insert(field.to_owned(), json!(id));
        }
    }
    let key = "secCtxAllowPrivilegeEscalation";
    if let Some(found) = text(data, key) {
        let flag =
            go_bool(found).ok_or_else(|| Invalid::new(key, found, "true or false").to_string())?;
        all.insert("allowPrivilegeEscalation".to_owned(), json!(flag));
    }
    if let Some(found) = text(data, "secCtx") {
        let wrong = |why: String| format!("secCtx: {why}");
        let read: SecurityContext = serde_json::from_value(yaml(found).map_err(wrong)?)
            .map_err(|why| wrong(why.to_string()))?;
        if let Ok(Value::Object(read)) = serde_json::to_value(read) {
            all.extend(read);
        }
    }
    Ok(Some(all).filter(|all| !all.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JSON is YAML.
    fn parse(data: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let pairs = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Settings::parse(&pairs.collect(), &|text| {
            serde_json::from_str(text).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn a_config_map_says_what_the_waiter_may_use_and_who_it_is() {
        let (settings, wrong) = parse(&[
            ("image", "registry.example/velero/velero:v1.16.0"),
            ("command", "/velero-restore-helper"),
            ("cpuRequest", "50m"),
            ("cpuLimit", "0"),
            ("memRequest", "16Mi"),
            ("memLimit", "0.5Gi"),
            ("secCtxRunAsUser", "1001"),
            ("secCtxRunAsGroup", "999"),
            ("secCtxAllowPrivilegeEscalation", "F"),
            (
                "secCtx",
                r#"{"runAsUser": 1002, "capabilities": {"drop": ["ALL"]}, "seLinuxOptions": {"level": "s0"}}"#,
            ),
        ]);
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(
            settings.resources,
            Some(
                json!({"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"memory": "0.5Gi"}})
            )
        );
        assert_eq!(
            settings.security.map(Value::Object),
            Some(
                json!({"runAsUser": 1002, "runAsGroup": 999, "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]}, "seLinuxOptions": {"level": "s0"}})
            )
        );
        assert_eq!(parse(&[]), (Settings::default(), vec![]));
        // What is left out has its default, against which the rest is held.
        let (settings, _) = parse(&[("cpuLimit", "200m")]);
        assert_eq!(
            settings.resources,
            Some(
                json!({"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}})
            )
        );
    }

    #[test]
    fn what_cannot_be_used_is_named_and_the_default_stands() {
        for (data, why) in [
            (vec![("cpuRequest", "much")], r#"cpuRequest: found "much""#),
            (
                vec![("cpuLimit", "50m")],
                r#"cpuRequest: found "100m"; allowed: not more than cpuLimit, which is 50m"#,
            ),
            (
                vec![("memRequest", "1Gi"), ("memLimit", "512Mi")],
                "memRequest",
            ),
            (
                vec![("secCtxRunAsUser", "root")],
                r#"secCtxRunAsUser: found "root"; allowed: a number"#,
            ),
            (
                vec![("secCtxAllowPrivilegeEscalation", "never")],
                "secCtxAllowPrivilegeEscalation",
            ),
            (
                vec![("secCtx", r#"{"runAsuser": 1}"#)],
                "secCtx: unknown field `runAsuser`",
            ),
            (
                vec![("secCtx", r#"{"runAsUser": "1"}"#)],
                "secCtx: invalid type",
            ),
            (vec![("secCtx", "[")], "secCtx: "),
        ] {
            let (settings, wrong) = parse(&data);
            assert_eq!(settings, Settings::default(), "{data:?}");
            assert!(wrong.len() == 1 && wrong[0].starts_with(why), "{wrong:?}");
        }
    }
}
