//! What a backup holds: which kinds, which objects, in which order, with what else; which volumes, through which pod; and how it ends.
//!
//! The rules are Velero's, so that its users' filters mean the same here; where Velero leaves something to chance (the pod that
//! carries a shared claim) the answer here is always the same one.

pub mod absence;
pub mod block;
pub mod filter;
pub mod hook;
pub mod names;
pub mod object;
pub mod resource;
pub mod volume_policy;
pub mod volumes;

pub use filter::Filter;
pub use names::Names;
pub use resource::{Catalogue, Resource};
