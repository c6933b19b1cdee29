//! S3 and everything that speaks it, through the AWS SDK.
//!
//! Every request has a deadline that grows with the bytes it moves, a bounded number of attempts
//! with jittered pauses, and an idle limit while a body comes in, so that a server that accepts
//! connections and never answers cannot hang a caller. Checksums are calculated only where S3
//! requires them or the location asks for them: many S3 clones refuse the newer ones.

mod classify;
mod config;
mod connect;
mod http;
mod store;
mod transfer;
mod trust;

pub use config::{Credentials, Encryption, S3Config, Timeouts};
pub use store::S3Store;
