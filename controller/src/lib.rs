//! The cluster side: one module per kind, one registration list ([`app`]).

pub mod agents;
pub mod app;
pub mod args;
pub mod context;
pub mod deletion;
pub mod location;
pub mod maintenance;
pub mod repository;
pub mod restore;
pub mod sync;
pub mod tarball;
