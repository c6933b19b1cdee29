//! The two kinds of policy as one.

use jackline_crds::jackline::{BackupPolicy, ClusterBackupPolicy, PolicyStatus};
use jackline_policy::{Invalid, Policy};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A policy's object, of either kind.
pub trait PolicyObject:
    kube::Resource<DynamicType = ()>
    + Serialize
    + DeserializeOwned
    + Clone
    + std::fmt::Debug
    + Send
    + Sync
{
    /// The valid form.
    fn policy(&self) -> Result<Policy, Invalid>;
    /// As it was last written.
    fn status(&self) -> Option<&PolicyStatus>;
}

impl PolicyObject for ClusterBackupPolicy {
    fn policy(&self) -> Result<Policy, Invalid> {
        self.policy()
    }

    fn status(&self) -> Option<&PolicyStatus> {
        self.status.as_ref()
    }
}

impl PolicyObject for BackupPolicy {
    fn policy(&self) -> Result<Policy, Invalid> {
        self.policy()
    }

    fn status(&self) -> Option<&PolicyStatus> {
        self.status.as_ref()
    }
}
