//! The node side of Jackline: moves the data of this node's volumes to and from the repository.
//!
//! Input: `PodVolumeBackup` and `PodVolumeRestore` objects, the pods of this node, and their volumes below `--host-pods`.
//! Output: snapshots, restored volumes, and the objects' status. The second job is `maintain`: prune and check of one repository,
//! run by the controller as a Job so that heavy work never shares the leader's memory.
//!
//! Invariants: `Completed` is only written when the data was verified to come from (or to have reached) the volume itself; work that
//! was left unfinished by an ended agent is taken over by the next one; nothing is kept on the node.

pub mod app;
pub mod args;
mod backup;
mod context;
mod load;
pub mod maintain;
mod marker;
mod metrics;
mod mounts;
mod parent;
mod paths;
mod pods;
mod progress;
mod record;
mod repos;
mod restore;
mod stop;
