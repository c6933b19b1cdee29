//! What users write: the API types of `velero.io` and `jackline.dev`, and every name that ends up in a cluster.
//!
//! The CustomResourceDefinitions in `crds/yaml` are generated from these types.

pub mod foreign;
mod go_duration;
pub mod jackline;
mod kind;
mod lenient;
pub mod names;
pub mod reference;
mod selector;
mod tolerant;
pub mod velero;
pub mod yaml;

pub use go_duration::{GoDuration, InvalidGoDuration};
