//! The settings of Velero's node agents: one JSON document in a ConfigMap.

use std::collections::BTreeMap;

use jackline_policy::labels::Labels;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;

use crate::lenient::null_default;
use crate::selector::selector;

/// What a node agent takes of its ConfigMap; the rest is about what the file-system half does not do.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeAgentConfig {
    #[serde(deserialize_with = "null_default")]
    load_concurrency: LoadConcurrency,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LoadConcurrency {
    global_config: Option<i64>,
    #[serde(deserialize_with = "null_default")]
    per_node_config: Vec<NodeRule>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeRule {
    #[serde(deserialize_with = "null_default")]
    node_selector: LabelSelector,
    number: i64,
}

/// More volumes at once than this help nobody.
const MOST: u16 = 64;

impl NodeAgentConfig {
    /// Reads the one document of the ConfigMap, whatever its key.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(map: &ConfigMap) -> Result<Self, String> {
        let data = map.data.iter().flatten().collect::<Vec<_>>();
        let [(key, text)] = data.as_slice() else {
            let found = data.len();
            return Err(format!("it has {found} keys; expected one with JSON"));
        };
        serde_json::from_str(text).map_err(|error| format!("{key}: {error}"))
    }

    /// Whether nodes differ by their labels.
    #[must_use]
    pub fn asks_for_labels(&self) -> bool {
        !self.load_concurrency.per_node_config.is_empty()
    }

    /// How many volumes a node with these labels works on at once, and what was not understood: the least of the rules that match it,
    /// or else what is said for all nodes (`getDataPathConcurrentNum` of Velero). `None` where nothing is said.
    #[must_use]
    pub fn volumes_at_once(&self, labels: &BTreeMap<String, String>) -> (Option<u16>, Vec<String>) {
        let mut complaints = Vec::new();
        let mut number = |field: &str, number: i64| {
            let found = u16::try_from(number)
                .ok()
                .filter(|n| (1..=MOST).contains(n));
            if found.is_none() {
                complaints.push(format!(
                    "loadConcurrency.{field} is {number}; expected 1 to {MOST}"
                ));
            }
            // What is meant is clear.
            found.or((number > 0).then_some(MOST))
        };
        let settings = &self.load_concurrency;
        let everywhere = settings
            .global_config
            .and_then(|global| number("globalConfig", global));
        let labels: Labels = labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let mut here: Option<u16> = None;
        let mut selectors = Vec::new();
        for (at, rule) in settings.per_node_config.iter().enumerate() {
            let field = format!("perNodeConfig[{at}]");
            let Some(limit) = number(&format!("{field}.number"), rule.number) else {
                continue;
            };
            let field = format!("loadConcurrency.{field}.nodeSelector");
            match selector(&field, Some(&rule.node_selector)) {
                Ok(selector) if selector.matches(&labels) => {
                    here = Some(here.map_or(limit, |least| least.min(limit)));
                }
                Ok(_) => {}
                Err(invalid) => selectors.push(invalid.to_string()),
            }
        }
        complaints.extend(selectors);
        (here.or(everywhere), complaints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config(value: &Value) -> NodeAgentConfig {
        let data = BTreeMap::from([("config.json".to_owned(), value.to_string())]);
        NodeAgentConfig::parse(&ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        })
        .unwrap()
    }

    fn fast() -> BTreeMap<String, String> {
        BTreeMap::from([("disk".to_owned(), "fast".to_owned())])
    }

    #[test]
    fn the_least_of_the_rules_that_match_a_node_counts() {
        let rule = |labels: Value, number: i64| json!({"nodeSelector": {"matchLabels": labels}, "number": number});
        for (value, of_fast, of_others, complaints) in [
            (json!({}), None, None, 0),
            (json!({"loadConcurrency": null}), None, None, 0),
            (
                json!({"loadConcurrency": {"globalConfig": 2}}),
                Some(2),
                Some(2),
                0,
            ),
            (
                json!({"loadConcurrency": {"globalConfig": 0}}),
                None,
                None,
                1,
            ),
            (
                json!({"loadConcurrency": {"globalConfig": 1_000_000}}),
                Some(64),
                Some(64),
                1,
            ),
            (
                json!({"loadConcurrency": {"globalConfig": 2, "perNodeConfig": [
                    rule(json!({"disk": "fast"}), 8), rule(json!({}), 5), rule(json!({"disk": "slow"}), 1)]}}),
                Some(5),
                Some(5),
                0,
            ),
            (
                json!({"loadConcurrency": {"globalConfig": 2, "perNodeConfig": [
                    rule(json!({"disk": "fast"}), 8), rule(json!({"disk": "fast"}), -1)]}}),
                Some(8),
                Some(2),
                1,
            ),
            (
                json!({"loadConcurrency": {"perNodeConfig": [{"number": 3, "nodeSelector": {"matchExpressions":
                    [{"key": "disk", "operator": "Like", "values": ["f"]}]}}]}}),
                None,
                None,
                1,
            ),
            (
                json!({"loadConcurrency": {"perNodeConfig": [{"number": 3, "nodeSelector": {"matchExpressions":
                    [{"key": "disk", "operator": "Exists"}]}}]}, "prepareQueueLength": 5}),
                Some(3),
                None,
                0,
            ),
        ] {
            let config = config(&value);
            let (here, said) = config.volumes_at_once(&fast());
            assert_eq!(
                (here, said.len()),
                (of_fast, complaints),
                "{value}: {said:?}"
            );
            assert_eq!(
                config.volumes_at_once(&BTreeMap::new()).0,
                of_others,
                "{value}"
            );
        }
    }

    #[test]
    fn what_is_not_one_document_is_refused_with_what_was_found() {
        let with = |pairs: &[(&str, &str)]| {
            let data = pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let map = ConfigMap {
                data: Some(data.collect()),
                ..ConfigMap::default()
            };
            NodeAgentConfig::parse(&map).unwrap_err()
        };
        assert!(with(&[]).contains("0 keys"));
        assert!(with(&[("a", "{}"), ("b", "{}")]).contains("2 keys"));
        assert!(with(&[("a", "loadConcurrency: 3")]).starts_with("a: "));
    }
}
