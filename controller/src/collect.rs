//! Gathers the objects of a backup: lists kinds in parallel, keeps only names in memory and the objects themselves in a file.
//!
//! Input: filters and the cluster. Output: [`Collection`], from which the tarball is written and the volumes are chosen without any
//! further request.

mod discover;
mod facts;
mod gather;
mod list;
mod pages;
#[cfg(test)]
mod scripted;
mod spool;
mod walk;

pub use discover::{Discovered, discover};
pub use facts::{Facts, PodFacts, VolumeFacts};
pub use gather::{CollectError, Known, Request, collect};
pub use spool::{Collection, Item};
pub use walk::{in_order, order, resource_list};
