//! What users write: the API types of `velero.io` and `jackline.dev`, and every name that ends up in a cluster.
//!
//! The CustomResourceDefinitions in `crds/yaml` are generated from these types.

mod go_duration;
mod kind;
mod lenient;
pub mod names;
mod tolerant;
pub mod velero;

pub use go_duration::{GoDuration, InvalidGoDuration};
