//! What a restore does with each object of a backup, decided on plain JSON.
//!
//! Inputs are the objects as the backup's tarball holds them, the copies of volumes that exist, and what the cluster holds now.
//! The controller gathers these, asks here, and carries the answers out:
//!
//! - [`order`]: which kinds come first;
//! - [`scope`]: which objects the restore's filters admit;
//! - [`skip`]: which objects are never restored, and why;
//! - [`meta`]: what is taken off an object, and which labels it gets;
//! - [`owners`]: who owned which of its fields;
//! - [`action`]: per-kind changes (pods, services, jobs, role bindings, …);
//! - [`claim`]: claims and persistent volumes;
//! - [`volume`]: which volume's data goes into which pod, and who waits for it;
//! - [`hook`]: what runs before and in a restored pod;
//! - [`wait`], [`waiter`]: the init container that waits, and what the user wants of it;
//! - [`mapping`]: storage classes, nodes and images that are called differently here;
//! - [`modify`], [`strategic`]: patches that the user asks for;
//! - [`conflict`]: an object that is there already.

pub mod action;
pub mod claim;
pub mod conflict;
pub mod hook;
pub mod json;
pub mod mapping;
pub mod meta;
pub mod modify;
pub mod order;
pub mod owners;
pub mod scope;
pub mod skip;
pub mod strategic;
pub mod volume;
pub mod wait;
pub mod waiter;
