//! What the user wants different on the objects of a restore: names that are mapped, patches, and how pods wait, read from ConfigMaps.

use std::collections::BTreeMap;

use jackline_crds::velero::RestoreSpec;
use jackline_policy::restore::{mapping::Mappings, modify::Modifiers, waiter::Settings};
use jackline_runtime::Failure;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, ResourceExt, api::ListParams};

use crate::{
    context::Context,
    rules::{self, Unusable},
};

/// What is changed on each object that a restore makes.
#[derive(Debug, Default)]
pub struct Adaptation {
    /// Storage classes, nodes and images that are called differently here.
    pub mappings: Mappings,
    /// Patches.
    pub modifiers: Modifiers,
    /// How the init container of pods that wait is made.
    pub waiter: Settings,
    /// What of it cannot be used.
    pub warnings: Vec<String>,
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
    let nodes: Api<Node> = Api::all(context.clients.call.clone());
    let nodes = nodes.list_metadata(&ListParams::default()).await?;
    let mappings = Mappings {
        classes: mapping("change-storage-class").await?,
        nodes: mapping("change-pvc-node-selector").await?,
        here: nodes.items.iter().map(ResourceExt::name_any).collect(),
        images: Mappings::image_pairs(mapping("change-image-name").await?.values()),
    };
    let waiter = mapping("pod-volume-restore").await?;
    let (waiter, wrong) = Settings::parse(&waiter, &rules::yaml);
    let wrong = wrong.into_iter().map(|why| {
        format!("ConfigMap with label velero.io/pod-volume-restore: {why}; the default is used")
    });
    let astray = mappings.astray().map(|(old, new)| {
        format!(
            "ConfigMap with label velero.io/change-pvc-node-selector: node {old} is mapped to {new}, which does not exist; the \
             scheduler chooses"
        )
    });
    let warnings = wrong.chain(astray).collect();
    let modifiers = match modifiers(context, spec).await? {
        Ok(modifiers) => modifiers,
        Err(why) => {
            errors.push(why);
            Modifiers::default()
        }
    };
    Ok(Adaptation {
        mappings,
        modifiers,
        waiter,
        warnings,
    })
}

async fn modifiers(
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
    let read = rules::read(context, &wanted.name, Modifiers::parse).await?;
    Ok(read.map_err(|unusable| match unusable {
        Unusable::Missing => {
            format!("failed to get resource modifiers configmap {place}: it does not exist")
        }
        Unusable::Wrong(why) => {
            format!("Error in parsing resource modifiers provided in configmap {place}: {why}")
        }
    }))
}
