//! The cluster side: one module per kind, one registration list ([`app`]).

pub mod agents;
pub mod annotator;
pub mod app;
pub mod args;
pub mod backup;
pub mod collect;
pub mod context;
pub mod coverage;
pub mod deletion;
pub mod exec;
pub mod expiry;
mod fence;
mod finalizer;
pub mod location;
pub mod maintenance;
pub mod policies;
mod remove;
pub mod repository;
mod requests;
pub mod restore;
pub mod retention;
mod rules;
pub mod schedule;
pub mod stall;
pub mod sync;
pub mod tarball;
pub mod world;
