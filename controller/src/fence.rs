//! Phases of Backups and Restores are written by their present leader alone.
//!
//! A leader that stood still may not know for a moment that another has taken its place. So every write carries the version that was
//! looked at and the epoch of the writer, and over a later epoch nothing is written.

use std::fmt::Debug;

use jackline_crds::names::{FIELD_MANAGER, annotation};
use jackline_runtime::{
    Epoch, Failure, LeaderToken, NotLeader,
    status::{Guard, write_status_and_metadata},
};
use kube::{Api, Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Whether this leader may go on with an object, as far as the object says.
///
/// # Errors
/// When leadership is lost, or a later leader has written the object.
pub fn check<K: Resource>(object: &K, token: &LeaderToken) -> Result<(), NotLeader> {
    token.check()?;
    let writer = object.annotations().get(annotation::LEADER_EPOCH);
    let writer: Option<Epoch> = writer.and_then(|text| text.parse().ok());
    match writer {
        Some(writer) if token.epoch().is_before(&writer) => Err(NotLeader),
        _ => Ok(()),
    }
}

/// Adds the writer to the metadata of a patch.
pub fn sign(metadata: &mut Value, token: &LeaderToken) {
    metadata["annotations"][annotation::LEADER_EPOCH] = json!(token.epoch().to_string());
}

/// Makes `status` the status of what was looked at and adds `metadata`, unless somebody wrote in between.
///
/// # Errors
/// As [`check`], and when the API server does not take it.
pub async fn write<K, S>(
    api: &Api<K>,
    observed: &K,
    status: &S,
    mut metadata: Value,
    token: &LeaderToken,
) -> Result<K, Failure>
where
    K: Resource + Serialize + DeserializeOwned + Clone + Debug,
    S: Serialize,
{
    check(observed, token)?;
    sign(&mut metadata, token);
    let version = Guard::SameVersion;
    let written =
        write_status_and_metadata(api, observed, status, &metadata, version, FIELD_MANAGER).await?;
    Ok(written.unwrap_or_else(|| observed.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jackline_crds::velero::Backup;

    #[test]
    fn over_a_later_leader_s_phase_nothing_is_written() {
        let (token, held) = LeaderToken::for_tests();
        let written_by = |epoch: &str| {
            let mut backup = Backup::new("b", Default::default());
            let annotations = backup.annotations_mut();
            annotations.insert(annotation::LEADER_EPOCH.to_owned(), epoch.to_owned());
            backup
        };
        let mine = token.epoch().to_string();
        for (epoch, may) in [
            (mine.as_str(), true),
            ("1/", false),
            ("1/another lease", true),
            ("what?", true),
        ] {
            assert_eq!(check(&written_by(epoch), &token).is_ok(), may, "{epoch}");
        }
        assert!(check(&Backup::new("b", Default::default()), &token).is_ok());
        drop(held);
        assert_eq!(check(&written_by(&mine), &token), Err(NotLeader));
    }
}
