//! Locks on a repository.

mod holder;

pub use holder::{FOREIGN_STALE, Instance, LockHolder, LockJudge, RestRule, rest_rule};
