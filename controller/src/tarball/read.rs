//! Reading a tarball that anybody may have written.

use std::{
    cell::Cell,
    collections::BTreeSet,
    io::{self, Read},
    rc::Rc,
};

use flate2::read::MultiGzDecoder;
use jackline_policy::naming::is_dns_label;

use super::{CLUSTER, NAMESPACES, PREFERRED, RESOURCES, VERSION_PATH};

/// How much a tarball may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the whole archive, unpacked. Velero's own limit is 16 GiB.
    pub total: u64,
    /// Bytes of one object. etcd stores 1.5 MiB and the API server takes 3 MiB unless it is told otherwise, but Go may write a
    /// character of a text as six.
    pub object: u64,
    /// Objects, each counted once.
    pub objects: usize,
    /// Bytes of the names of all objects, with those of their namespaces: they are kept in memory, and in a restore's log.
    pub names: usize,
    /// Kinds of objects.
    pub kinds: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total: 16 << 30,
            object: 16 << 20,
            objects: 500_000,
            names: 48 << 20,
            kinds: 10_000,
        }
    }
}

impl Limits {
    /// Why an archive of so many objects is refused.
    pub fn refusal(&self, objects: usize) -> Option<TarballError> {
        (objects > self.objects).then(|| TarballError::TooMany(self.objects, "objects"))
    }

    /// Why an archive of objects with these names, and the names of their namespaces, is refused.
    pub fn refusal_of<'a>(
        &self,
        objects: impl Iterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Option<TarballError> {
        let (mut count, mut bytes) = (0, 0);
        for (name, namespace) in objects {
            count += 1;
            bytes += name.len() + namespace.map_or(0, str::len);
            if let Some(refusal) = long("the name of an object", name, NAME) {
                return Some(refusal);
            }
        }
        self.refusal(count).or_else(|| {
            (bytes > self.names).then(|| TarballError::TooMany(self.names, "bytes of names"))
        })
    }
}

/// Bytes of an entry that carries a long name.
const EXTENSION: u64 = 64 << 10;
/// Longest name of an object: most kinds take 253 bytes, and those of RBAC, which may be longer, have to fit into a URL.
const NAME: usize = 1024;
/// Longest `plural.group`.
const KIND: usize = 63 + 1 + 253;

fn long(what: &'static str, name: &str, limit: usize) -> Option<TarballError> {
    let length = name.len();
    (length > limit).then_some(TarballError::LongName {
        what,
        length,
        limit,
    })
}

/// Where an object of the archive belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Plural and group: `pods`, `deployments.apps`.
    pub resource: String,
    /// The API version, for files below a version's directory; `None` for the plain path that every format has.
    pub version: Option<String>,
    /// `None` for objects outside of namespaces.
    pub namespace: Option<String>,
    /// The object's name, as the file says.
    pub name: String,
}

/// What was in an archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// What `metadata/version` said, if it was there.
    pub version: Option<String>,
    /// Objects handed out.
    pub objects: u64,
    /// Bytes of the archive, unpacked.
    pub bytes: u64,
}

/// Why a tarball is refused. What was handed out before must not be used then.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// Not a gzip'd tar, cut off, or the source failed.
    #[error("the tarball cannot be read")]
    Read(#[from] io::Error),
    /// A name that leads out of the archive, or that is no text.
    #[error("the tarball holds an entry with the unsafe name {0:?}")]
    Name(String),
    /// A name that no object can have. It is not said: it may be of any length.
    #[error("the tarball holds {what} of {length} bytes; at most {limit} are read")]
    LongName {
        /// Whose name it is.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Something other than a file: a link, a device.
    #[error("the tarball holds {path:?}, which is no regular file")]
    NotAFile {
        /// The entry.
        path: String,
    },
    /// One object is too large.
    #[error("{path:?} has {size} bytes; at most {limit} are read")]
    ObjectTooLarge {
        /// The entry.
        path: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The whole is too large.
    #[error("the tarball unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// An object is there twice: which of them is meant, nobody can say.
    #[error("the tarball holds {0} twice")]
    Twice(String),
    /// There are too many objects or kinds.
    #[error("the tarball holds more than {0} {1}")]
    TooMany(usize, &'static str),
    /// A format that is not known.
    #[error("the tarball has format version {0:?}; 1 and 1.1.0 are known")]
    Version(String),
    /// The consumer gave up.
    #[error("{0}")]
    Consumer(Box<dyn std::error::Error + Send + Sync>),
}

/// Hands every object of the archive to `each`, in the archive's order. Files that are no objects are passed over.
///
/// # Errors
/// When the archive is not what it should be, or when `each` fails.
pub fn read(
    source: impl Read,
    limits: Limits,
    mut each: impl FnMut(Entry, Vec<u8>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<Totals, TarballError> {
    let over = Rc::new(Cell::new(false));
    let unpacked = Bounded {
        inner: MultiGzDecoder::new(source),
        left: limits.total,
        over: over.clone(),
    };
    let result = entries(unpacked, limits, &mut each);
    // The limit is an error like any other to those in between.
    if over.get() {
        Err(TarballError::TooLarge(limits.total))
    } else {
        result
    }
}

/// A reader that fails when there is more than is allowed.
struct Bounded<R> {
    inner: R,
    left: u64,
    over: Rc<Cell<bool>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => {
                self.over.set(true);
                Err(io::Error::other("too large"))
            }
        }
    }
}

fn entries(
    unpacked: impl Read,
    limits: Limits,
    each: &mut impl FnMut(Entry, Vec<u8>) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
) -> Result<Totals, TarballError> {
    let mut archive = tar::Archive::new(unpacked);
    let mut totals = Totals::default();
    // What is below a version's directory is passed over by who keeps objects.
    let (mut objects, mut names, mut kinds) = (0, 0, BTreeSet::new());
    let mut long_name = None;
    // Raw: the crate would read the entries that carry long names whole, however long they are.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() {
            let name = extension(&mut entry)?;
            long_name = Some(
                name.split(|&byte| byte == 0)
                    .next()
                    .unwrap_or_default()
                    .to_vec(),
            );
            continue;
        }
        if kind.is_pax_local_extensions() {
            let content = extension(&mut entry)?;
            for extension in tar::PaxExtensions::new(&content) {
                let extension = extension?;
                match extension.key_bytes() {
                    b"path" => long_name = Some(extension.value_bytes().to_vec()),
                    b"size" => return Err(TarballError::Name("size".to_owned())),
                    _ => {}
                }
            }
            continue;
        }
        if kind.is_pax_global_extensions() {
            extension(&mut entry)?;
            continue;
        }
        let path = match long_name.take() {
            Some(name) => path_of(&name)?,
            None => path_of(&entry.header().path_bytes())?,
        };
        if kind.is_dir() {
            continue;
        }
        if !(kind.is_file() || kind.is_contiguous()) {
            return Err(TarballError::NotAFile { path });
        }
        let size = entry.size();
        if size > limits.object {
            return Err(TarballError::ObjectTooLarge {
                path,
                size,
                limit: limits.object,
            });
        }
        totals.bytes = totals.bytes.saturating_add(size);
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(1 << 20));
        entry.read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if path == VERSION_PATH {
            totals.version = Some(version(&content)?);
        } else if let Some(place) = place(&path) {
            totals.objects += 1;
            let refusal = long("the name of an object", &place.name, NAME)
                .or_else(|| long("the name of a kind", &place.resource, KIND));
            if let Some(refusal) = refusal {
                return Err(refusal);
            }
            // Which has 63 bytes at most.
            if place
                .namespace
                .as_deref()
                .is_some_and(|name| !is_dns_label(name))
            {
                return Err(TarballError::Name(path));
            }
            if place.version.is_none() {
                objects += 1;
                if let Some(refusal) = limits.refusal(objects) {
                    return Err(refusal);
                }
                names += place.name.len() + place.namespace.as_ref().map_or(0, String::len);
                if names > limits.names {
                    return Err(TarballError::TooMany(limits.names, "bytes of names"));
                }
                if !kinds.contains(&place.resource) {
                    kinds.insert(place.resource.clone());
                }
                if kinds.len() > limits.kinds {
                    return Err(TarballError::TooMany(limits.kinds, "kinds"));
                }
            }
            each(place, content).map_err(TarballError::Consumer)?;
        }
    }
    Ok(totals)
}

/// The content of an entry that only describes the next one.
fn extension(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    entry.take(EXTENSION + 1).read_to_end(&mut content)?;
    if content.len() as u64 > EXTENSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a name without end",
        ));
    }
    Ok(content)
}

/// The path as text, when it stays inside the archive.
fn path_of(bytes: &[u8]) -> Result<String, TarballError> {
    let shown = || TarballError::Name(String::from_utf8_lossy(bytes).into_owned());
    let path = std::str::from_utf8(bytes).map_err(|_| shown())?;
    let path = path.strip_prefix("./").unwrap_or(path);
    let inner = path.strip_suffix('/').unwrap_or(path);
    let safe = inner
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..")
        && !path.contains('\0');
    if safe {
        Ok(path.to_owned())
    } else {
        Err(shown())
    }
}

fn version(content: &[u8]) -> Result<String, TarballError> {
    let text = String::from_utf8_lossy(content).trim().to_owned();
    match text.as_str() {
        // The first format called itself 1.
        "1" | "1.0.0" | "1.1.0" => Ok(text),
        _ => Err(TarballError::Version(text)),
    }
}

/// Where a file belongs, if it is an object.
fn place(path: &str) -> Option<Entry> {
    let mut parts = path.split('/');
    if parts.next() != Some(RESOURCES) {
        return None;
    }
    let resource = parts.next()?.to_owned();
    let mut next = parts.next()?;
    let mut version = None;
    if next != NAMESPACES && next != CLUSTER {
        version = Some(next.strip_suffix(PREFERRED).unwrap_or(next).to_owned());
        next = parts.next()?;
    }
    let namespace = match next {
        NAMESPACES => Some(parts.next()?.to_owned()),
        CLUSTER => None,
        _ => return None,
    };
    let name = parts
        .next()?
        .strip_suffix(".json")
        .filter(|name| !name.is_empty())?
        .to_owned();
    parts.next().is_none().then_some(Entry {
        resource,
        version,
        namespace,
        name,
    })
}

#[cfg(test)]
mod tests;
