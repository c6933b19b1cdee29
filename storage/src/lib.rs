//! Where objects lie.
//!
//! One trait, [`ObjectStore`], over S3 ([`s3`]), a directory ([`fs`]) and memory ([`memory`]). The
//! rest of Jackline never sees an SDK type. [`open_location`] turns a Velero storage location into a
//! store rooted at its bucket and prefix, [`layout`] names the objects that Velero keeps there.
//!
//! Promises that every implementation keeps (`tests/conformance.rs` runs over all of them):
//! - a reader sees the whole of an object or nothing of it, also when the writer is killed;
//! - a call ends: S3 requests have deadlines and a bounded number of attempts;
//! - an error names the place and the key, and no error or `Debug` output holds a secret.

pub mod error;
pub mod fs;
pub mod key;
pub mod layout;
mod location;
pub mod memory;
pub mod metrics;
pub mod s3;
mod scoped;
mod store;

pub use error::{Error, Result};
pub use fs::LocalObject;
pub use location::{LocationConfig, open_location, restic_identifier};
pub use scoped::Scoped;
pub use store::{Listing, ObjectMeta, ObjectStore};
