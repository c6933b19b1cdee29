//! The tarball of a backup: `metadata/version`, then every object as one line of JSON under two paths.
//!
//! Writing and reading are synchronous: give them a thread (`spawn_blocking`). The reader never touches the file system and trusts
//! nothing in the archive: names that leave the tree, links and sizes without measure are refused.

mod read;
mod write;

pub use read::{Entry, Limits, TarballError, Totals, read};
pub use write::TarballWriter;

/// What `metadata/version` says in the tarballs we write.
pub const FORMAT_VERSION: &str = "1.1.0";
/// The file with the format's version.
const VERSION_PATH: &str = "metadata/version";
/// The directory of all objects.
const RESOURCES: &str = "resources";
/// Directory of the objects of namespaces.
const NAMESPACES: &str = "namespaces";
/// Directory of the objects outside of namespaces.
const CLUSTER: &str = "cluster";
/// What the directory of the API server's preferred version ends in.
const PREFERRED: &str = "-preferredversion";
