//! Rules that users keep in a ConfigMap: YAML in its only key.

use jackline_policy::Yaml;
use jackline_runtime::Failure;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;

use crate::context::Context;

/// Why there are no rules.
#[derive(Debug)]
pub enum Unusable {
    /// There is no ConfigMap.
    Missing,
    /// What it says is wrong.
    Wrong(String),
}

/// Reads a ConfigMap next to the controller.
///
/// # Errors
/// When the API server does not answer.
pub async fn read<T>(
    context: &Context,
    name: &str,
    parse: impl Fn(&str, Yaml<'_>) -> Result<T, String>,
) -> Result<Result<T, Unusable>, Failure> {
    let Some(config) = context.fetch::<ConfigMap>(name).await? else {
        return Ok(Err(Unusable::Missing));
    };
    let parsed = source(&config).and_then(|text| parse(text, &yaml));
    Ok(parsed.map_err(Unusable::Wrong))
}

/// The only value of a ConfigMap.
fn source(config: &ConfigMap) -> Result<&str, String> {
    let data = config.data.iter().flatten();
    let texts: Vec<_> = data.map(|(_, text)| text.as_str()).collect();
    match texts.as_slice() {
        [text] => Ok(text),
        other => Err(format!("it has {} keys in data; allowed: one", other.len())),
    }
}

/// Reads YAML.
///
/// # Errors
/// What is wrong with it.
pub fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use jackline_policy::{
        backup::volume_policy::{Action, Volume, VolumePolicies},
        restore::modify::Modifiers,
    };

    use super::*;

    #[test]
    fn modifiers_are_yaml_within_yaml() {
        let source = "version: v1\nresourceModifierRules:\n- conditions:\n    groupResource: deployments.apps\n    namespaces: [shop]\n  \
            mergePatches:\n  - patchData: |\n      spec:\n        replicas: 1\n        paused: null\n";
        let modifiers = Modifiers::parse(source, &yaml).unwrap();
        let mut object = serde_json::json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": {"replicas": 3, "paused": true}});
        assert!(modifiers.apply("deployments.apps", &mut object).is_empty());
        assert_eq!(object["spec"], serde_json::json!({"replicas": 1}));
    }

    #[test]
    fn volume_policies_are_yaml() {
        let source = "# cold data\nversion: v1\nvolumePolicies:\n- conditions:\n    capacity: \"0,100Gi\"\n    nfs:\n    csi: {}\n  \
            action:\n    type: skip\n- conditions: {pvcLabels: {on: yes, tier: 2}, storageClass: [a, 1]}\n  action: {type: fs-backup}\n\
            - conditions:\n  action: {type: snapshot}\n";
        let policies = VolumePolicies::parse(source, &yaml).unwrap();
        let action = policies.action(&Volume::default(), &Default::default());
        assert_eq!(action, Some((2, Action::Snapshot)));
        let empty = VolumePolicies::parse("", &yaml).unwrap_err();
        assert!(empty.contains("version"), "{empty}");
    }

    #[test]
    fn a_config_map_has_one_key() {
        let mut config = ConfigMap::default();
        assert!(source(&config).unwrap_err().contains("0 keys"));
        config.data = Some([("rules".to_owned(), "x".to_owned())].into());
        assert_eq!(source(&config), Ok("x"));
        let aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
            d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
            g: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        assert!(yaml(aliases).is_err());
    }
}
