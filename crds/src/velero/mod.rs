//! `velero.io`: the kinds of Velero 1.16 to 1.18 as one superset.
//!
//! None of them has a status subresource: status is a plain field, written with a merge patch on the object itself, as Velero's
//! own programs do. Everything that a later version may add is read past, and phases nobody knows yet become `Unknown`, so that
//! one strange object never hides the others of its kind.

mod backup;
mod data_mover;
mod hooks;
mod location;
mod node_agent_config;
mod pod_volume;
mod repository;
mod request;
mod restore;
mod schedule;

pub use backup::*;
pub use data_mover::*;
pub use hooks::*;
pub use location::*;
pub use node_agent_config::*;
pub use pod_volume::*;
pub use repository::*;
pub use request::*;
pub use restore::*;
pub use schedule::*;
