//! The files of a restore in the bucket (velero-compat §3.3).

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use jackline_storage::{
    ObjectStore,
    layout::{RestoreFile, restore_object},
};
use serde_json::Value;

use super::report::Report;

/// Writes the files of a restore, the log first.
///
/// # Errors
/// When the bucket does not take them.
pub async fn upload(
    store: &dyn ObjectStore,
    restore: &str,
    report: &Report,
    volumes: &[Value],
) -> Result<(), jackline_storage::Error> {
    let files = [
        (RestoreFile::Log, report.log_text()),
        (RestoreFile::Results, report.results().to_string()),
        (RestoreFile::ResourceList, json(&report.resource_list())),
        (RestoreFile::ItemOperations, "[]".to_owned()),
        (RestoreFile::VolumeInfo, json(&volumes)),
    ];
    for (file, text) in files {
        store
            .put(&restore_object(restore, file), gzip(text.as_bytes()))
            .await?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn gzip(content: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing to memory does not fail.
    let _ = encoder.write_all(content);
    encoder.finish().unwrap_or_default().into()
}
