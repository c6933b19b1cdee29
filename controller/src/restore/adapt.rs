//! What the user wants different on the objects of a restore: names that are mapped and patches, read from ConfigMaps.

use std::collections::{BTreeMap, BTreeSet};

use jackline_crds::velero::RestoreSpec;
use jackline_policy::restore::{mapping::Mappings, modify::Modifiers};
use jackline_runtime::Failure;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::context::Context;

/// What is changed on each object that a restore makes.
#[derive(Debug, Default)]
pub struct Adaptation {
    /// Storage classes, nodes and images that are called differently here.
    pub mappings: Mappings,
    /// Patches.
    pub modifiers: Modifiers,
}

/// Reads the ConfigMaps that a restore is under. What is wrong with them goes into `errors`.
///
/// # Errors
/// When the API server does not answer.
pub async fn read(
    context: &Context,
    spec: &RestoreSpec,
    errors: &mut Vec<String>,
) -> Result<Adaptation, Failure> {
    let api: Api<ConfigMap> = Api::namespaced(context.clients.call.clone(), &context.namespace);
    let mut mapping = async |name: &str| -> Result<BTreeMap<String, String>, Failure> {
        let selector = format!("velero.io/plugin-config,velero.io/{name}=RestoreItemAction");
        let found = api.list(&ListParams::default().labels(&selector)).await?;
        let mut found = found.items;
        if found.len() > 1 {
            let names: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
            errors.push(format!(
                "found more than one ConfigMap matching label selector {selector:?}: {}",
                names.join(", ")
            ));
        }
        Ok(found
            .pop()
            .and_then(|config| config.data)
            .unwrap_or_default())
    };
    let mut mappings = Mappings {
        classes: mapping("change-storage-class").await?,
        nodes: mapping("change-pvc-node-selector").await?,
        images: Mappings::image_pairs(mapping("change-image-name").await?.values()),
    };
    if !mappings.nodes.is_empty() {
        let nodes: Api<Node> = Api::all(context.clients.call.clone());
        let nodes = nodes.list_metadata(&ListParams::default()).await?;
        let nodes: BTreeSet<_> = nodes.items.iter().map(ResourceExt::name_any).collect();
        mappings.nodes.retain(|_, node| nodes.contains(node));
    }
    let modifiers = match modifiers(&api, context, spec).await? {
        Ok(modifiers) => modifiers,
        Err(why) => {
            errors.push(why);
            Modifiers::default()
        }
    };
    Ok(Adaptation {
        mappings,
        modifiers,
    })
}

async fn modifiers(
    api: &Api<ConfigMap>,
    context: &Context,
    spec: &RestoreSpec,
) -> Result<Result<Modifiers, String>, Failure> {
    let Some(wanted) = &spec.resource_modifier else {
        return Ok(Ok(Modifiers::default()));
    };
    let (kind, place) = (
        &wanted.kind,
        format!("{}/{}", context.namespace, wanted.name),
    );
    if !kind.eq_ignore_ascii_case("configmap") {
        return Ok(Err(format!(
            "resource modifiers: kind {kind:?} is not supported, only configmap is"
        )));
    }
    let Some(config) = api.get_opt(&wanted.name).await? else {
        let why = format!("failed to get resource modifiers configmap {place}: it does not exist");
        return Ok(Err(why));
    };
    let parsed = source(&config).and_then(|text| Modifiers::parse(text, &yaml));
    Ok(parsed.map_err(|why| {
        format!("Error in parsing resource modifiers provided in configmap {place}: {why}")
    }))
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

fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
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
