//! The cluster side: one module per kind, one registration list ([`app`]).

pub mod agents;
pub mod app;
pub mod args;
pub mod context;
