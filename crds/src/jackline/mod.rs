//! `jackline.dev/v1alpha1`: policies and what they cover.
//!
//! These are the specs as users write them. [`ClusterBackupPolicy::policy`] and [`BackupPolicy::policy`] turn them into the valid types
//! of `jackline_policy`, or say which field cannot be.

mod convert;
mod coverage;
mod policy;
mod quantity;
mod retention;
mod schema;
mod status;
mod volumes;

pub use coverage::*;
pub use policy::*;
pub use quantity::RawQuantity;
pub use retention::*;
pub use status::*;
pub use volumes::*;

/// Version of the kinds.
pub const VERSION: &str = "v1alpha1";
