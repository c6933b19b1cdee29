//! What a directory holds, with everything a backup has to bring back.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One file, directory, link or other node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and permission bits, as in `stat`.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Nanoseconds since 1970; `None` where a listing does not say.
    pub modified: Option<i128>,
    /// Of a regular file.
    pub content: Option<Content>,
    /// Of a symbolic link.
    pub target: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A regular file's bytes, by their hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub size: u64,
    pub sha256: String,
    /// Number of hard links.
    pub links: u64,
}

/// A directory's entries by path relative to it, in bytes; the directory itself is `""`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Entry>);

impl Tree {
    /// Reads a directory and everything below it; links are not followed.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add(root, root)?;
        Ok(tree)
    }

    fn add(&mut self, root: &Path, path: &Path) -> Result<()> {
        let entry = Entry::read(path).with_context(|| format!("read {}", path.display()))?;
        let directory = entry.mode & 0o170_000 == 0o040_000;
        let name = path.strip_prefix(root)?.as_os_str().as_bytes().to_vec();
        self.0.insert(name, entry);
        if directory {
            for child in fs::read_dir(path)? {
                self.add(root, &child?.path())?;
            }
        }
        Ok(())
    }

    /// The part below `prefix/` of a listing in the fixtures' form.
    ///
    /// # Errors
    /// When the listing has another form.
    pub fn from_listing(listing: &Value, prefix: &str) -> Result<Self> {
        let mut tree = Self::default();
        for item in listing.as_array().context("a listing is an array")? {
            let path = item["path"].as_str().context("path")?;
            let Some(rest) = path.strip_prefix(prefix) else {
                continue;
            };
            let Some(name) = rest
                .strip_prefix('/')
                .or_else(|| rest.is_empty().then_some(""))
            else {
                continue;
            };
            tree.0
                .insert(name.as_bytes().to_vec(), Entry::from_listing(item)?);
        }
        ensure!(!tree.0.is_empty(), "the listing has nothing below {prefix}");
        Ok(tree)
    }

    /// Without the entries that `drop` names.
    #[must_use]
    pub fn without(mut self, drop: &[&str]) -> Self {
        self.0
            .retain(|path, _| !drop.iter().any(|name| name.as_bytes() == path.as_slice()));
        self
    }

    /// What differs, one line each; nothing when both are the same.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, ours) in &self.0 {
            let name = String::from_utf8_lossy(path);
            match other.0.get(path) {
                None => lines.push(format!("'{name}' is missing")),
                Some(theirs) if theirs != ours => {
                    lines.push(format!("'{name}' was {ours:?} and is {theirs:?}"));
                }
                Some(_) => {}
            }
        }
        for path in other.0.keys().filter(|path| !self.0.contains_key(*path)) {
            lines.push(format!("'{}' is new", String::from_utf8_lossy(path)));
        }
        lines
    }

    /// Fails naming what differs.
    ///
    /// # Errors
    /// When anything does.
    pub fn same_as(&self, other: &Self) -> Result<()> {
        let differences = self.differences(other);
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }

    /// Bytes in regular files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0
            .values()
            .filter_map(|entry| entry.content.as_ref())
            .map(|c| c.size)
            .sum()
    }
}

impl Entry {
    fn read(path: &Path) -> Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        let kind = meta.file_type();
        let content = kind.is_file().then(|| -> Result<_> {
            let mut hash = Sha256::new();
            std::io::copy(&mut fs::File::open(path)?, &mut Hashing(&mut hash))?;
            let sha256 = hex::encode(hash.finalize());
            Ok(Content {
                size: meta.size(),
                sha256,
                links: meta.nlink(),
            })
        });
        let target = kind.is_symlink().then(|| fs::read_link(path));
        let mut xattrs = BTreeMap::new();
        for name in xattr::list(path).into_iter().flatten() {
            let value = xattr::get(path, &name)?.unwrap_or_default();
            xattrs.insert(name.as_bytes().to_vec(), value);
        }
        let modified = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            modified: Some(modified),
            content: content.transpose()?,
            target: target
                .transpose()?
                .map(|t| OsStr::as_bytes(t.as_os_str()).to_vec()),
            xattrs,
        })
    }

    fn from_listing(item: &Value) -> Result<Self> {
        let mode = item["mode"]
            .as_str()
            .and_then(|mode| mode.strip_prefix("0o"));
        let mode = u32::from_str_radix(mode.context("mode in octal")?, 8)?;
        let number = |field: &str| {
            item[field]
                .as_u64()
                .with_context(|| format!("{field} of {item}"))
        };
        let content = match item["sha256"].as_str() {
            Some(hash) => Some(Content {
                size: number("size")?,
                sha256: hash.to_owned(),
                links: number("nlink")?,
            }),
            None => None,
        };
        let xattrs = item["xattr_hex"].as_object().into_iter().flatten();
        let xattrs = xattrs
            .map(|(name, value)| {
                let value = hex::decode(value.as_str().context("xattr_hex")?)?;
                Ok((name.as_bytes().to_vec(), value))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            mode,
            uid: u32::try_from(number("uid")?)?,
            gid: u32::try_from(number("gid")?)?,
            modified: item["mtime_ns"].as_i64().map(i128::from),
            content,
            target: item["target"]
                .as_str()
                .map(|target| target.as_bytes().to_vec()),
            xattrs,
        })
    }
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
