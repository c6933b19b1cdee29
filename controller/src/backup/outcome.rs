//! What became of a pod's hooks. It is kept with the Backup while that goes on: a pass that begins anew neither forgets what failed nor
//! runs again what is over.

use jackline_crds::{
    names::{FIELD_MANAGER, annotation::HOOKS_PREFIX},
    velero::Backup,
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::context::Context;

/// How much of an error is kept, in bytes: annotations have little room, 256 KiB for all pods together.
const TEXT: usize = 300;

/// What hooks have led to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Outcome {
    /// Hooks begun.
    pub(super) attempted: i32,
    /// Why some of them failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) errors: Vec<String>,
    /// A required one failed: the pod is not to be backed up.
    #[serde(skip_serializing_if = "is_false")]
    pub(super) forbidden: bool,
    /// One of them did its work, or may have.
    #[serde(skip)]
    pub(super) effect: bool,
    /// None is left to run.
    pub(super) over: bool,
}

impl Outcome {
    /// Adds what came later.
    pub(super) fn add(&mut self, later: Self) {
        self.attempted += later.attempted;
        self.errors.extend(later.errors);
        self.forbidden |= later.forbidden;
        self.effect |= later.effect;
        self.over = later.over;
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn key(pod: &str) -> String {
    format!("{HOOKS_PREFIX}{pod}")
}

/// What a Backup says of the hooks of a pod; anybody may have written it.
pub(super) fn of(backup: &Backup, pod: &str) -> Option<Outcome> {
    serde_json::from_str(backup.annotations().get(&key(pod))?).ok()
}

/// The same, as it is now.
pub(super) async fn now(
    context: &Context,
    backup: &Backup,
    pod: &str,
) -> Result<Option<Outcome>, kube::Error> {
    let now = context.api::<Backup>().get(&backup.name_any()).await?;
    Ok(of(&now, pod).filter(|_| now.uid() == backup.uid()))
}

/// Keeps what became of the hooks of a pod.
pub(super) async fn keep(
    context: &Context,
    backup: &Backup,
    pod: &str,
    outcome: &Outcome,
) -> Result<(), kube::Error> {
    let mut outcome = outcome.clone();
    for error in &mut outcome.errors {
        error.truncate(error.floor_char_boundary(TEXT));
    }
    let text = serde_json::to_string(&outcome).map_err(kube::Error::SerdeError)?;
    let patch = json!({"metadata": {"uid": backup.uid(), "annotations": {(key(pod)): text}}});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = context.api::<Backup>();
    api.patch_metadata(&backup.name_any(), &params, &Patch::Merge(patch))
        .await
        .map(drop)
}

/// Takes everything about hooks off a Backup that ends; gives the annotations that have to go, its own and those of `pods`.
pub(super) fn forget(backup: &mut Backup, pods: &[String]) -> Vec<String> {
    let mut keys: Vec<String> = pods.iter().map(|pod| key(pod)).collect();
    backup.annotations_mut().retain(|name, _| {
        let about = name.starts_with(HOOKS_PREFIX);
        if about {
            keys.push(name.clone());
        }
        !about
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(attempted: i32, errors: &[&str], forbidden: bool, over: bool) -> Outcome {
        Outcome {
            attempted,
            errors: errors.iter().map(ToString::to_string).collect(),
            forbidden,
            effect: false,
            over,
        }
    }

    #[test]
    fn later_hooks_are_added() {
        let mut all = outcome(1, &["a"], false, true);
        all.add(outcome(2, &["b"], false, false));
        assert_eq!(all, outcome(3, &["a", "b"], false, false));
        all.add(outcome(1, &[], true, true));
        assert_eq!(all, outcome(4, &["a", "b"], true, true));
    }

    #[test]
    fn an_ended_backup_says_nothing_of_hooks() {
        let mut backup = Backup::new("nightly", Default::default());
        let text = serde_json::to_string(&outcome(1, &["a"], false, false)).unwrap();
        backup.annotations_mut().insert(key("u"), text);
        backup
            .annotations_mut()
            .insert("mine".to_owned(), String::new());
        assert_eq!(of(&backup, "u"), Some(outcome(1, &["a"], false, false)));
        assert_eq!(of(&backup, "v"), None);
        assert_eq!(
            forget(&mut backup, &["w".to_owned()]),
            ["hooks.jackline.dev/w", "hooks.jackline.dev/u"]
        );
        assert_eq!(backup.annotations().len(), 1);
        backup.annotations_mut().insert(key("u"), "{".to_owned());
        assert_eq!(of(&backup, "u"), None);
    }
}
