//! What should happen: pure decisions.
//!
//! Every function here is `fn(facts, now) -> plan`: synchronous, total, deterministic, without clock, randomness, I/O or Kubernetes
//! types. `crds` turns raw specs into the valid types of [`spec`] (or into an [`Invalid`]); `controller` gathers the facts and carries
//! out the plans. So each rule of the product can be tested with a table or a property.

pub mod annotate;
pub mod backup;
pub mod condition;
pub mod coverage;
pub mod cron;
pub mod elect;
pub mod elsewhere;
pub mod expiry;
pub mod facts;
pub mod govern;
pub mod invalid;
pub mod labels;
pub mod naming;
pub mod pattern;
pub mod quantity;
pub mod restore;
pub mod retention;
pub mod schedule;
pub mod select;
pub mod spec;

pub use invalid::Invalid;
pub use spec::{Policy, PolicyId, PolicyKind, PolicySpec};

/// Reads YAML, of which JSON is a part.
pub type Yaml<'a> = &'a dyn Fn(&str) -> Result<serde_json::Value, String>;
