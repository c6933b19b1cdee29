//! What lies in a directory, as keys; temporary files are never part of it.

use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use jiff::Timestamp;

use crate::ObjectMeta;

/// How the names of half-written files begin.
pub(super) const TEMPORARY: &str = ".jackline-tmp-";
/// A temporary file of this age has no writer any more.
pub(super) const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A directory (with its trailing slash) or an object.
pub(super) enum Entry {
    Directory(String),
    Object(ObjectMeta),
}

impl Entry {
    /// What the entry sorts by: a directory as the prefix of its keys.
    pub(super) fn order(&self) -> &str {
        match self {
            Entry::Directory(prefix) => prefix,
            Entry::Object(meta) => &meta.key,
        }
    }
}

/// Entries of the directory `prefix` (empty or with a trailing slash) in the order of their keys.
pub(super) fn entries(root: &Path, prefix: &str) -> io::Result<Vec<Entry>> {
    let listing = match fs::read_dir(root.join(prefix)) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry?;
        // A name that is no key cannot have been written by this store.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // Follows links, as opening does.
        let meta = match fs::metadata(entry.path()) {
            Err(error) if is_gone(&error) => continue,
            other => other?,
        };
        if name.starts_with(TEMPORARY) {
            remove_if_abandoned(&entry.path(), &meta);
        } else if meta.is_dir() {
            found.push(Entry::Directory(format!("{prefix}{name}/")));
        } else if meta.is_file() {
            found.push(Entry::Object(object(format!("{prefix}{name}"), &meta)));
        }
    }
    found.sort_unstable_by(|a, b| a.order().cmp(b.order()));
    Ok(found)
}

/// Whether there is any object at or below the entry.
pub(super) fn holds_object(root: &Path, entry: &Entry) -> io::Result<bool> {
    match entry {
        Entry::Object(_) => Ok(true),
        Entry::Directory(prefix) => {
            for below in entries(root, prefix)? {
                if holds_object(root, &below)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

fn remove_if_abandoned(path: &Path, meta: &fs::Metadata) {
    let age = meta.modified().ok().and_then(|time| time.elapsed().ok());
    if meta.is_file() && age.is_some_and(|age| age > ABANDONED) {
        // A store that may only be read keeps them; they are invisible anyway.
        let _ = fs::remove_file(path);
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

pub(super) fn object(key: String, meta: &fs::Metadata) -> ObjectMeta {
    let modified = meta
        .modified()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok());
    ObjectMeta {
        key,
        size: meta.len(),
        modified,
    }
}
