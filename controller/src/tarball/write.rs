//! Writing a tarball.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};

use super::{CLUSTER, FORMAT_VERSION, NAMESPACES, PREFERRED, RESOURCES, VERSION_PATH};

/// Each object is there twice in a row, which any level finds; higher ones cost time and gain little.
const LEVEL: u32 = 4;
/// The mode that Velero gives its files.
const MODE: u32 = 0o755;

/// A tarball being written.
pub struct TarballWriter<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    modified: u64,
}

impl<W: Write> std::fmt::Debug for TarballWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarballWriter").finish_non_exhaustive()
    }
}

impl<W: Write> TarballWriter<W> {
    /// Begins a tarball; `modified` is the files' time in Unix seconds.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn new(writer: W, modified: u64) -> io::Result<Self> {
        let tar = tar::Builder::new(GzEncoder::new(writer, Compression::new(LEVEL)));
        let mut this = Self { tar, modified };
        this.file(VERSION_PATH, format!("{FORMAT_VERSION}\n").as_bytes())?;
        Ok(this)
    }

    /// Writes an object under both of its paths. `resource` is `pods` or `deployments.apps`, `version` the API version, `json` the
    /// object.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn object(
        &mut self,
        resource: &str,
        version: &str,
        namespace: Option<&str>,
        name: &str,
        json: &[u8],
    ) -> io::Result<()> {
        let rest = match namespace {
            Some(namespace) => format!("{NAMESPACES}/{namespace}/{name}.json"),
            None => format!("{CLUSTER}/{name}.json"),
        };
        self.file(&format!("{RESOURCES}/{resource}/{rest}"), json)?;
        self.file(
            &format!("{RESOURCES}/{resource}/{version}{PREFERRED}/{rest}"),
            json,
        )
    }

    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(self.modified);
        header.set_uid(0);
        header.set_gid(0);
        self.tar.append_data(&mut header, path, content)
    }

    /// Ends the tarball and gives the writer back.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()?.finish()
    }
}
