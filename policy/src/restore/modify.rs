//! Resource modifiers: patches that a restore applies to the objects it makes (velero-compat §7.5).
//!
//! Every rule whose conditions match the object as it was before the first of them is applied, in order. A rule that fails changes
//! nothing and is reported; the others are applied all the same.

use globset::{GlobBuilder, GlobMatcher};
use json_patch::{PatchErrorKind, PatchOperation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    json::{name, namespace, text},
    strategic,
};
use crate::{
    Invalid, Yaml,
    labels::{Labels, Selector},
    pattern::{Globs, Pattern},
};

/// Valid modifiers.
#[derive(Debug, Clone, Default)]
pub struct Modifiers(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    conditions: Conditions,
    patches: Patches,
}

#[derive(Debug, Clone)]
struct Conditions {
    resource: GlobMatcher,
    name: Option<Pattern>,
    /// None: every namespace, and what is in none.
    namespaces: Globs,
    selector: Selector,
    /// JSON pointer and the value that has to be there.
    matches: Vec<(String, Value)>,
}

#[derive(Debug, Clone)]
enum Patches {
    Json(json_patch::Patch),
    Merge(Vec<Value>),
    Strategic(Vec<Value>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawModifiers {
    version: String,
    #[serde(default)]
    resource_modifier_rules: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRule {
    conditions: RawConditions,
    #[serde(default)]
    patches: Vec<RawOperation>,
    #[serde(default)]
    merge_patches: Vec<RawPatch>,
    #[serde(default)]
    strategic_patches: Vec<RawPatch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawConditions {
    #[serde(default)]
    group_resource: String,
    #[serde(default)]
    resource_name_regex: String,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default)]
    label_selector: RawSelector,
    #[serde(default)]
    matches: Vec<RawMatch>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawSelector {
    #[serde(default)]
    match_labels: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<RawExpression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpression {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    #[serde(default)]
    path: String,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOperation {
    #[serde(default)]
    operation: String,
    #[serde(default)]
    from: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPatch {
    #[serde(default)]
    patch_data: String,
}

impl Modifiers {
    /// Checks what a ConfigMap says; `yaml` reads the patches in it, which are YAML within YAML.
    ///
    /// # Errors
    /// The first thing that is wrong, with its field.
    pub fn parse(source: &str, yaml: Yaml<'_>) -> Result<Self, String> {
        let raw: RawModifiers =
            serde_json::from_value(yaml(source)?).map_err(|error| error.to_string())?;
        if !raw.version.eq_ignore_ascii_case("v1") {
            return Err(Invalid::new("version", raw.version, "v1").to_string());
        }
        if raw.resource_modifier_rules.is_empty() {
            return Err(Invalid::raw("resourceModifierRules", "none", "at least one").to_string());
        }
        let rules = raw.resource_modifier_rules.into_iter().enumerate();
        let rules = rules.map(|(at, rule)| {
            let field = format!("resourceModifierRules[{at}]");
            let rule: RawRule =
                serde_json::from_value(rule).map_err(|error| format!("{field}: {error}"))?;
            Rule::parse(&field, rule, yaml)
        });
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// Changes an object of `resource` (`plural[.group]`), still in the namespace of its backup. The reasons are of rules that could
    /// not be applied.
    pub fn apply(&self, resource: &str, object: &mut Value) -> Vec<String> {
        let rules = self.0.iter().enumerate();
        let matching: Vec<_> = rules
            .filter(|(_, rule)| rule.conditions.match_object(resource, object))
            .collect();
        let mut errors = Vec::new();
        for (at, rule) in matching {
            let mut changed = object.clone();
            match rule
                .patches
                .apply(&mut changed)
                .and_then(|()| same_object(object, &changed))
            {
                Ok(()) => *object = changed,
                Err(why) => errors.push(format!(
                    "resourceModifierRules[{at}] was not applied: {why}"
                )),
            }
        }
        errors
    }
}

/// What a restore has decided to make cannot become something else.
fn same_object(before: &Value, after: &Value) -> Result<(), String> {
    for field in [
        "/apiVersion",
        "/kind",
        "/metadata/name",
        "/metadata/namespace",
    ] {
        let (before, after) = (before.pointer(field), after.pointer(field));
        if before != after {
            let shown =
                |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            return Err(format!(
                "it would change {field} from {} to {}",
                shown(before),
                shown(after)
            ));
        }
    }
    Ok(())
}

impl Rule {
    fn parse(field: &str, raw: RawRule, yaml: Yaml<'_>) -> Result<Self, String> {
        let kinds = [
            !raw.patches.is_empty(),
            !raw.merge_patches.is_empty(),
            !raw.strategic_patches.is_empty(),
        ];
        let found = kinds.iter().filter(|given| **given).count();
        if found != 1 {
            let allowed = "one of patches, mergePatches, strategicPatches";
            return Err(Invalid::raw(field, found, allowed).to_string());
        }
        let data = |kind: &str, patches: Vec<RawPatch>| -> Result<Vec<Value>, String> {
            let patches = patches.into_iter().enumerate();
            let read = patches.map(|(at, patch)| {
                let field = format!("{field}.{kind}[{at}].patchData");
                let value = yaml(&patch.patch_data).map_err(|error| format!("{field}: {error}"))?;
                match value {
                    Value::Object(_) => Ok(value),
                    other => Err(Invalid::raw(field, other, "an object").to_string()),
                }
            });
            read.collect()
        };
        let patches = if !raw.patches.is_empty() {
            let operations = raw.patches.into_iter().enumerate();
            let operations = operations.map(|(at, operation)| {
                json_operation(&format!("{field}.patches[{at}]"), operation)
            });
            Patches::Json(json_patch::Patch(operations.collect::<Result<_, _>>()?))
        } else if !raw.merge_patches.is_empty() {
            Patches::Merge(data("mergePatches", raw.merge_patches)?)
        } else {
            Patches::Strategic(data("strategicPatches", raw.strategic_patches)?)
        };
        let conditions = Conditions::parse(&format!("{field}.conditions"), raw.conditions)?;
        Ok(Self {
            conditions,
            patches,
        })
    }
}

fn json_operation(field: &str, raw: RawOperation) -> Result<PatchOperation, String> {
    const KNOWN: &str = "add, remove, replace, test, move, copy";
    let operation = raw.operation.to_ascii_lowercase();
    if !KNOWN.split(", ").any(|known| known == operation) {
        return Err(Invalid::new(format!("{field}.operation"), raw.operation, KNOWN).to_string());
    }
    if raw.path.is_empty() {
        return Err(Invalid::new(format!("{field}.path"), "", "a JSON pointer").to_string());
    }
    let value = meant(field, raw.value)?;
    let value = json!({"op": operation, "from": raw.from, "path": raw.path, "value": value});
    serde_json::from_value(value).map_err(|error| format!("{field}: {error}"))
}

/// A value as Velero means it: text is the JSON that it spells, and a string where it spells none or is in quotes.
fn meant(field: &str, value: Value) -> Result<Value, String> {
    let text = match value {
        Value::String(text) => text,
        Value::Null => String::new(),
        plain => return Ok(plain),
    };
    let quoted = text.strip_prefix('"');
    if let Some(quoted) = quoted.and_then(|rest| rest.strip_suffix('"')) {
        return Ok(Value::String(quoted.to_owned()));
    }
    match text.to_ascii_lowercase().as_str() {
        "true" => return Ok(Value::Bool(true)),
        "false" => return Ok(Value::Bool(false)),
        _ => {}
    }
    match serde_json::from_str(&text) {
        Ok(spelled) => Ok(spelled),
        Err(error) if text.starts_with(['{', '[']) => {
            let allowed = format!("JSON ({error})");
            Err(Invalid::new(format!("{field}.value"), text, allowed).to_string())
        }
        Err(_) => Ok(Value::String(text)),
    }
}

impl Conditions {
    fn parse(field: &str, raw: RawConditions) -> Result<Self, String> {
        let invalid = |error: Invalid| error.to_string();
        if raw.group_resource.is_empty() {
            let at = format!("{field}.groupResource");
            return Err(Invalid::new(
                at,
                "",
                "a resource such as persistentvolumeclaims or *.apps",
            )
            .to_string());
        }
        let resource = GlobBuilder::new(&in_parts(&raw.group_resource))
            .literal_separator(true)
            .build();
        let resource = resource.map_err(|error| {
            let allowed = format!("a glob ({})", error.kind());
            Invalid::new(
                format!("{field}.groupResource"),
                &raw.group_resource,
                allowed,
            )
            .to_string()
        })?;
        let pattern = format!("{field}.resourceNameRegex");
        let name = (!raw.resource_name_regex.is_empty())
            .then(|| Pattern::new(&pattern, &raw.resource_name_regex));
        let labels = &raw.label_selector.match_labels;
        let labels = labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        let lines = &raw.label_selector.match_expressions;
        let lines = lines.iter().map(|line| {
            (
                line.key.as_str(),
                line.operator.as_str(),
                line.values.as_slice(),
            )
        });
        let selector = Selector::new(&format!("{field}.labelSelector"), labels, lines);
        let namespaces = Globs::new(&format!("{field}.namespaces"), &raw.namespaces);
        let matches = raw.matches.into_iter().enumerate();
        let matches = matches.map(|(at, line)| {
            let field = format!("{field}.matches[{at}]");
            if !line.path.starts_with('/') {
                let at = format!("{field}.path");
                return Err(Invalid::new(at, line.path, "a JSON pointer").to_string());
            }
            let value = meant(&field, line.value)?;
            Ok((line.path, value))
        });
        Ok(Self {
            resource: resource.compile_matcher(),
            name: name.transpose().map_err(invalid)?,
            namespaces: namespaces.map_err(invalid)?,
            selector: selector.map_err(invalid)?,
            matches: matches.collect::<Result<_, _>>()?,
        })
    }

    fn match_object(&self, resource: &str, object: &Value) -> bool {
        let listed =
            |namespace: &str| self.namespaces.is_empty() || self.namespaces.matches(namespace);
        let labels: Labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect();
        self.resource.is_match(in_parts(resource))
            && namespace(object).is_none_or(listed)
            && self
                .name
                .as_ref()
                .is_none_or(|pattern| pattern.matches(name(object)))
            && self.selector.matches(&labels)
            && self
                .matches
                .iter()
                .all(|(path, value)| object.pointer(path) == Some(value))
    }
}

/// In `deployments.apps` a `*` stops at a dot, as globs of paths stop at a slash.
fn in_parts(resource: &str) -> String {
    resource.replace('.', "/")
}

impl Patches {
    fn apply(&self, object: &mut Value) -> Result<(), String> {
        match self {
            Self::Json(operations) => match json_patch::patch(object, operations) {
                // Operations behind a test that fails are not meant for this object.
                Err(error) if matches!(error.kind, PatchErrorKind::TestFailed) => Ok(()),
                other => other.map_err(|error| error.to_string()),
            },
            Self::Merge(patches) => {
                patches
                    .iter()
                    .for_each(|patch| json_patch::merge(object, patch));
                Ok(())
            }
            Self::Strategic(patches) => {
                let version = text(object, "/apiVersion").unwrap_or_default();
                if !strategic::is_built_in(version) {
                    return Err(format!(
                        "strategic patches are for built-in kinds, not for {version}: use mergePatches"
                    ));
                }
                patches
                    .iter()
                    .try_for_each(|patch| strategic::merge(object, patch))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JSON is YAML enough for a test.
    fn yaml(text: &str) -> Result<Value, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    fn parse(rules: Value) -> Result<Modifiers, String> {
        let source = json!({"version": "v1", "resourceModifierRules": rules});
        Modifiers::parse(&source.to_string(), &yaml)
    }

    fn rule(conditions: Value, patches: Value) -> Value {
        let mut rule = patches;
        rule["conditions"] = conditions;
        rule
    }

    fn replicas(value: Value) -> Value {
        json!({"patches": [{"operation": "replace", "path": "/spec/replicas", "value": value}]})
    }

    fn deployment() -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}},
            "spec": {"replicas": 3, "paused": false}})
    }

    #[test]
    fn a_rule_is_for_what_all_its_conditions_match() {
        let matching = [
            json!({"groupResource": "deployments.apps"}),
            json!({"groupResource": "*.apps"}),
            json!({"groupResource": "{deployments,statefulsets}.apps", "namespaces": ["bank", "shop"]}),
            json!({"groupResource": "**", "namespaces": ["*"]}),
            json!({"groupResource": "*.apps", "namespaces": ["team-*", "sh?p"]}),
            json!({"groupResource": "deployments.*", "resourceNameRegex": "^web-"}),
            json!({"groupResource": "*.*", "labelSelector": {"matchLabels": {"app": "web"}}}),
            json!({"groupResource": "*.*", "matches": [{"path": "/spec/replicas", "value": "3"}, {"path": "/spec/paused", "value": "false"}]}),
            json!({"groupResource": "*.*", "matches": [{"path": "/metadata/labels/app", "value": "web"}]}),
        ];
        let other = [
            json!({"groupResource": "deployments"}),
            json!({"groupResource": "*"}),
            json!({"groupResource": "*.apps", "namespaces": ["bank"]}),
            json!({"groupResource": "*.apps", "namespaces": ["sho", "shop-*"]}),
            json!({"groupResource": "*.apps", "resourceNameRegex": "^db"}),
            json!({"groupResource": "*.apps", "labelSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}}),
            json!({"groupResource": "*.apps", "matches": [{"path": "/spec/replicas", "value": "\"3\""}]}),
            json!({"groupResource": "*.apps", "matches": [{"path": "/spec/nothing", "value": "3"}]}),
        ];
        for (conditions, want) in matching
            .iter()
            .map(|c| (c, 7))
            .chain(other.iter().map(|c| (c, 3)))
        {
            let modifiers = parse(json!([rule(conditions.clone(), replicas(json!("7")))])).unwrap();
            let mut object = deployment();
            assert_eq!(modifiers.apply("deployments.apps", &mut object), [""; 0]);
            assert_eq!(object["spec"]["replicas"], want, "{conditions}");
        }
    }

    #[test]
    fn all_matching_rules_apply_to_what_the_object_was() {
        let was_three = json!({"groupResource": "*.apps", "matches": [{"path": "/spec/replicas", "value": "3"}]});
        let label = json!({"mergePatches": [{"patchData": "{\"metadata\":{\"labels\":{\"app\":null,\"tier\":\"1\"}}}"}]});
        let modifiers = parse(json!([
            rule(was_three.clone(), replicas(json!("4"))),
            rule(was_three, label),
        ]));
        let mut object = deployment();
        assert!(
            modifiers
                .unwrap()
                .apply("deployments.apps", &mut object)
                .is_empty()
        );
        assert_eq!(object["spec"]["replicas"], 4);
        assert_eq!(object["metadata"]["labels"], json!({"tier": "1"}));
    }

    #[test]
    fn a_rule_that_fails_changes_nothing_and_is_named() {
        let any = json!({"groupResource": "**"});
        let missing = json!({"patches": [
            {"operation": "add", "path": "/spec/paused", "value": "true"},
            {"operation": "remove", "path": "/spec/nothing"}]});
        let renamed = json!({"mergePatches": [{"patchData": "{\"metadata\":{\"name\":\"x\"}}"}]});
        let modifiers = parse(json!([
            rule(any.clone(), missing),
            rule(any.clone(), renamed),
            rule(any, replicas(json!("1"))),
        ]));
        let mut object = deployment();
        let errors = modifiers.unwrap().apply("deployments.apps", &mut object);
        let mut wanted = deployment();
        wanted["spec"]["replicas"] = json!(1);
        assert_eq!(object, wanted);
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[0].starts_with("resourceModifierRules[0]")
                && errors[0].contains("/spec/nothing"),
            "{errors:?}"
        );
        assert!(
            errors[1].contains("would change /metadata/name"),
            "{errors:?}"
        );
    }

    #[test]
    fn operations_behind_a_failed_test_are_not_applied() {
        let patches = json!({"patches": [
            {"operation": "test", "path": "/spec/replicas", "value": "5"},
            {"operation": "remove", "path": "/spec/replicas"}]});
        let modifiers = parse(json!([rule(json!({"groupResource": "**"}), patches)])).unwrap();
        let mut object = deployment();
        assert!(modifiers.apply("deployments.apps", &mut object).is_empty());
        assert_eq!(object, deployment());
    }

    #[test]
    fn strategic_patches_are_for_built_in_kinds() {
        let patches = json!({"strategicPatches": [{"patchData": "{\"spec\":{\"replicas\":0}}"}]});
        let modifiers = parse(json!([rule(json!({"groupResource": "**"}), patches)])).unwrap();
        let mut object = deployment();
        assert!(modifiers.apply("deployments.apps", &mut object).is_empty());
        assert_eq!(object["spec"]["replicas"], 0);
        let mut custom =
            json!({"apiVersion": "example.com/v1", "kind": "Web", "metadata": {"name": "w"}});
        let errors = modifiers.apply("webs.example.com", &mut custom);
        assert!(errors[0].contains("use mergePatches"), "{errors:?}");
    }

    #[test]
    fn a_value_is_what_it_spells() {
        for (text, want) in [
            (json!("3"), json!(3)),
            (json!("\"3\""), json!("3")),
            (json!("True"), json!(true)),
            (json!("null"), json!(null)),
            (json!(""), json!("")),
            (json!(null), json!("")),
            (json!("plain words"), json!("plain words")),
            (json!("[1, {\"a\": 2}]"), json!([1, {"a": 2}])),
            (json!("inf"), json!("inf")),
            (json!({"a": 1}), json!({"a": 1})),
        ] {
            assert_eq!(meant("f", text.clone()).unwrap(), want, "{text}");
        }
        assert!(
            meant("f", json!("{oops"))
                .unwrap_err()
                .starts_with("f.value")
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let any = || json!({"groupResource": "*"});
        for (rules, why) in [
            (json!([]), "resourceModifierRules: found none"),
            (
                json!([rule(json!({}), replicas(json!("1")))]),
                "conditions.groupResource",
            ),
            (
                json!([rule(json!({"groupResource": "[a"}), replicas(json!("1")))]),
                "a glob",
            ),
            (
                json!([rule(
                    json!({"groupResource": "*", "resourceNameRegex": "("}),
                    replicas(json!("1"))
                )]),
                "resourceNameRegex",
            ),
            (
                json!([rule(
                    json!({"groupResource": "*", "matches": [{"value": "1"}]}),
                    replicas(json!("1"))
                )]),
                "matches[0].path",
            ),
            (
                json!([rule(
                    json!({"groupResource": "*", "labels": {}}),
                    replicas(json!("1"))
                )]),
                "unknown field `labels`",
            ),
            (
                json!([rule(any(), json!({}))]),
                "found 0; allowed: one of patches",
            ),
            (
                json!([rule(
                    any(),
                    json!({"patches": [{"operation": "replace", "path": "/a"}], "mergePatches": [{"patchData": "{}"}]})
                )]),
                "found 2",
            ),
            (
                json!([rule(
                    any(),
                    json!({"patches": [{"operation": "swap", "path": "/a"}]})
                )]),
                "patches[0].operation",
            ),
            (
                json!([rule(any(), json!({"patches": [{"operation": "add"}]}))]),
                "patches[0].path",
            ),
            (
                json!([rule(
                    any(),
                    json!({"patches": [{"operation": "add", "path": "a"}]})
                )]),
                "patches[0]",
            ),
            (
                json!([rule(any(), json!({"mergePatches": [{"patchData": "[]"}]}))]),
                "mergePatches[0].patchData",
            ),
            (
                json!([rule(
                    any(),
                    json!({"strategicPatches": [{"patchData": "{"}]})
                )]),
                "strategicPatches[0].patchData",
            ),
        ] {
            let error = parse(rules).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let newer = Modifiers::parse("{\"version\": \"v2\"}", &yaml).unwrap_err();
        assert!(newer.starts_with("version: found \"v2\""), "{newer}");
    }
}
