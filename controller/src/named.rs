//! Making the objects of volumes: PodVolumeBackups and PodVolumeRestores.

use std::fmt::Debug;

use jackline_crds::names::{FIELD_MANAGER, short_hash};
use kube::{Api, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};

/// Longest name of an object.
const NAME_MAX: usize = 253;
/// Lengths of the hash in the name; the first that is free or ours is taken.
const DIGITS: [usize; 4] = [5, 10, 20, 40];

/// Makes the object of a pod's volume, or finds the one that was made before. Gives its name and UID: the watch may still know another of
/// this name.
///
/// # Errors
/// When the API server refuses it, or others have taken all of its names.
pub async fn create<K>(
    api: &Api<K>,
    object: &mut K,
    owner: &str,
    (pod_uid, volume): (&str, &str),
    is_same: impl Fn(&K) -> bool,
) -> Result<(String, String), kube::Error>
where
    K: Resource + Clone + DeserializeOwned + Serialize + Debug,
{
    let params = PostParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PostParams::default()
    };
    let mut last = None;
    for digits in DIGITS {
        let name = name(owner, pod_uid, volume, digits);
        object.meta_mut().name = Some(name.clone());
        match api.create(&params, object).await {
            Ok(made) => return Ok((name, uid(&made))),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let there = api.get(&name).await?;
                if is_same(&there) {
                    return Ok((name, uid(&there)));
                }
                last = Some(kube::Error::Api(status));
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or(kube::Error::LinesCodecMaxLineLengthExceeded))
}

fn uid(object: &impl Resource) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

/// `<owner>-<hash>`: the same volume of the same pod has the same name whoever asks.
fn name(owner: &str, pod_uid: &str, volume: &str, digits: usize) -> String {
    let hash = short_hash(&format!("{pod_uid}/{volume}"), digits);
    let base: String = owner.chars().take(NAME_MAX - digits - 1).collect();
    // A part of a name cannot begin with the dash.
    format!("{}-{hash}", base.trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_always_the_same_and_never_too_long() {
        assert_eq!(name("b", "uid", "v", 5), name("b", "uid", "v", 5));
        assert_ne!(name("b", "uid", "v", 5), name("b", "uid", "w", 5));
        let long = name(&"x".repeat(253), "uid", "v", 40);
        assert_eq!(long.len(), 253);
        let cut = name(&format!("{}.x", "x".repeat(246)), "uid", "v", 5);
        assert!(!cut.contains('.'), "{cut}");
    }
}
