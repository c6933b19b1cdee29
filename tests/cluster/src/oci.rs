//! Image archives in the OCI layout, written from files of this machine: there is no registry where the tests run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::command::{command, run};

/// What an image holds and how it starts. Paths inside the image are absolute.
#[derive(Debug, Clone, Default)]
pub struct ImageSpec {
    /// With its registry, which must be `docker.io`: `docker.io/local/busybox:1`.
    pub name: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// `uid`, `uid:gid`, or empty for root.
    pub user: String,
    pub environment: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Dir { mode: u32, owner: u64 },
    File { from: PathBuf, mode: u32 },
    Bytes { content: Vec<u8>, mode: u32 },
    Link { target: String },
}

impl ImageSpec {
    /// An image with the directories that every program expects.
    pub fn new(name: &str) -> Self {
        let environment = vec!["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned()];
        let spec = Self {
            name: name.to_owned(),
            environment,
            ..Self::default()
        };
        spec.dir("/tmp", 0o1777, 0)
            .dir("/etc", 0o755, 0)
            .bytes("/etc/passwd", USERS, 0o644)
            .bytes("/etc/group", GROUPS, 0o644)
    }

    /// A directory; those above it are made with mode 0755.
    pub fn dir(mut self, path: &str, mode: u32, owner: u64) -> Self {
        self.entries
            .insert(path.to_owned(), Entry::Dir { mode, owner });
        self
    }

    /// A file with the content of one of this machine.
    pub fn file(mut self, path: &str, from: impl Into<PathBuf>, mode: u32) -> Self {
        self.entries.insert(
            path.to_owned(),
            Entry::File {
                from: from.into(),
                mode,
            },
        );
        self
    }

    pub fn bytes(mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.entries.insert(
            path.to_owned(),
            Entry::Bytes {
                content: content.into(),
                mode,
            },
        );
        self
    }

    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.entries.insert(
            path.to_owned(),
            Entry::Link {
                target: target.to_owned(),
            },
        );
        self
    }

    /// A program of this machine with the shared libraries that it is linked to.
    ///
    /// # Errors
    /// When the dynamic linker does not find a library.
    pub fn program(mut self, path: &str, from: &Path) -> Result<Self> {
        for library in shared_libraries(from)? {
            let inside = library.display().to_string();
            self = self.file(&inside, library, 0o755);
        }
        Ok(self.file(path, from, 0o755))
    }

    /// Every file below a directory of this machine, under the same path in the image.
    pub fn tree(mut self, root: &Path) -> Result<Self> {
        for entry in fs::read_dir(root).with_context(|| format!("read {}", root.display()))? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            let inside = path.display().to_string();
            self = if kind.is_dir() {
                self.tree(&path)?
            } else if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                self.link(&inside, &target.display().to_string())
            } else {
                self.file(&inside, &path, 0o644)
            };
        }
        Ok(self)
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        ensure!(
            self.name.starts_with("docker.io/"),
            "{}: not in docker.io/",
            self.name
        );
        let layer_path = archive.with_extension("layer");
        let (layer, layer_size) = self.write_layer(&layer_path)?;
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "Cmd": self.command,
                "Env": self.environment, "User": self.user,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        });
        let (config, config_digest) = json_blob(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": format!("sha256:{layer}"), "size": layer_size,
            }],
        });
        let (manifest, manifest_digest) = json_blob(&manifest)?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{manifest_digest}"), "size": manifest.len(),
                "annotations": {"io.containerd.image.name": self.name},
            }],
        });
        let file =
            File::create(archive).with_context(|| format!("create {}", archive.display()))?;
        let mut tar = Builder::new(BufWriter::new(file));
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", index.to_string().as_bytes())?;
        append(
            &mut tar,
            &format!("blobs/sha256/{manifest_digest}"),
            &manifest,
        )?;
        append(&mut tar, &format!("blobs/sha256/{config_digest}"), &config)?;
        let mut layer_file = File::open(&layer_path)?;
        let mut header = header(EntryType::Regular, 0o644, 0);
        header.set_size(layer_size);
        tar.append_data(
            &mut header,
            format!("blobs/sha256/{layer}"),
            &mut layer_file,
        )?;
        tar.into_inner()?.flush()?;
        fs::remove_file(layer_path)?;
        Ok(())
    }

    /// Writes the one layer and returns its digest and size.
    fn write_layer(&self, path: &Path) -> Result<(String, u64)> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut tar = Builder::new(Hashing::new(BufWriter::new(file)));
        let mut made = std::collections::BTreeSet::new();
        for (path, entry) in &self.entries {
            let inside = path.trim_start_matches('/');
            let parents: Vec<&Path> = Path::new(inside).ancestors().skip(1).collect();
            for parent in parents
                .iter()
                .rev()
                .filter(|parent| !parent.as_os_str().is_empty())
            {
                let absolute = format!("/{}", parent.display());
                if !self.entries.contains_key(&absolute) && made.insert(absolute) {
                    let mut header = header(EntryType::Directory, 0o755, 0);
                    tar.append_data(&mut header, parent, std::io::empty())?;
                }
            }
            match entry {
                Entry::Dir { mode, owner } => {
                    let mut header = header(EntryType::Directory, *mode, *owner);
                    tar.append_data(&mut header, inside, std::io::empty())?;
                }
                Entry::Bytes { content, mode } => {
                    let mut header = header(EntryType::Regular, *mode, 0);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, inside, content.as_slice())?;
                }
                Entry::File { from, mode } => {
                    let mut source = File::open(from)
                        .with_context(|| format!("{}: open {}", self.name, from.display()))?;
                    let mut header = header(EntryType::Regular, *mode, 0);
                    header.set_size(source.metadata()?.len());
                    tar.append_data(&mut header, inside, &mut source)?;
                }
                Entry::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, inside, target)?;
                }
            }
        }
        tar.into_inner()?.finish()
    }
}

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n\
                     nobody:x:65534:65534::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\nnonroot:x:65532:\n";

fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_size(0);
    header.set_mtime(1_600_000_000);
    header
}

fn append<W: Write>(tar: &mut Builder<W>, name: &str, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, 0o644, 0);
    header.set_size(content.len() as u64);
    Ok(tar.append_data(&mut header, name, content)?)
}

fn json_blob(value: &Value) -> Result<(Vec<u8>, String)> {
    let bytes = serde_json::to_vec(value)?;
    let digest = hex::encode(Sha256::digest(&bytes));
    Ok((bytes, digest))
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image architecture is known for {other}"),
    }
}

/// The libraries that the dynamic linker would load, itself included; none for a static program.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let mut start = [0; 4];
    File::open(program)
        .and_then(|mut file| file.read_exact(&mut start))
        .with_context(|| format!("read {}", program.display()))?;
    ensure!(
        start == *b"\x7fELF",
        "{} is no ELF program",
        program.display()
    );
    let mut ldd = command("ldd", [program]);
    let Ok(listed) = run(&mut ldd) else {
        return Ok(Vec::new()); // not a dynamic executable
    };
    ensure!(
        !listed.contains("not found"),
        "{}: {listed}",
        program.display()
    );
    let paths = listed.lines().filter_map(|line| {
        line.split_whitespace()
            .find(|word| word.starts_with('/'))
            .map(PathBuf::from)
    });
    Ok(paths.collect())
}

/// A writer that hashes and counts what passes.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    fn new(to: W) -> Self {
        Self {
            to,
            hash: Sha256::new(),
            size: 0,
        }
    }

    fn finish(mut self) -> Result<(String, u64)> {
        self.to.flush()?;
        Ok((hex::encode(self.hash.finalize()), self.size))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}
