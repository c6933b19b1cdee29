//! Objects as files of a directory: a restic `local` repository, a mounted disk, a copy of a bucket.
//!
//! A write goes to a temporary file in the object's own directory, is synced, renamed and the
//! directory synced, so a name never stands for half an object, also after a power failure.
//! Temporary files are never listed; those that a killed writer left are removed by a later listing
//! of their directory when they are a day old.

mod listing;

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tempfile::NamedTempFile;

use self::listing::{Entry, TEMPORARY, entries, holds_object, is_gone, object};
use crate::{Error, Listing, ObjectMeta, ObjectStore, Result, key, metrics};

/// Memory for so many bytes is taken before it is known whether they are there.
const TRUSTED: u64 = 16 << 20;

/// A store in the directory `root`. The directory is made by the first write.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// The store in directory `root`; nothing is touched yet.
    pub fn new(root: impl Into<PathBuf>) -> LocalStore {
        LocalStore { root: root.into() }
    }

    fn place(&self, key: &str) -> Result<Place> {
        let location = self.location();
        key::check(&location, key)?;
        let refused = key.split('/').any(|part| part.starts_with(TEMPORARY));
        if refused {
            let message = "it looks like a temporary file";
            return Err(Error::InvalidKey {
                location,
                key: key.to_owned(),
                message,
            });
        }
        Ok(Place {
            path: self.root.join(key),
            key: key.to_owned(),
            location,
        })
    }

    /// The sorted entries of directory `prefix`; none if it does not exist. Deleted objects leave
    /// empty directories behind, which are no part of a listing.
    async fn level(&self, prefix: String, empty_too: bool) -> Result<Vec<Entry>> {
        let (root, location) = (self.root.clone(), self.location());
        blocking(&self.location(), &prefix.clone(), move || {
            let found = entries(&root, &prefix).and_then(|mut found| {
                if !empty_too {
                    let mut kept = Vec::with_capacity(found.len());
                    for entry in found {
                        if holds_object(&root, &entry)? {
                            kept.push(entry);
                        }
                    }
                    found = kept;
                }
                Ok(found)
            });
            found.map_err(|error| Error::io(&location, &prefix, &error))
        })
        .await
    }
}

/// An object's file, with the names for its errors.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    key: String,
    location: String,
}

impl Place {
    fn error(&self, error: &io::Error) -> Error {
        match error.kind() {
            // A file where the key wants a directory: there is no such object.
            io::ErrorKind::NotADirectory => Error::NotFound {
                location: self.location.clone(),
                key: self.key.clone(),
            },
            _ => Error::io(&self.location, &self.key, error),
        }
    }

    fn short(&self, expected: u64, got: u64) -> Error {
        Error::ShortRead {
            location: self.location.clone(),
            key: self.key.clone(),
            expected,
            got,
        }
    }

    fn open(&self) -> Result<(File, u64)> {
        let open = || {
            let file = File::open(&self.path)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok((file, meta.len()))
        };
        open().map_err(|error| self.error(&error))
    }

    /// Writes what `fill` gives, atomically. `None`: `replace` is false and the object exists.
    fn write(
        &self,
        replace: bool,
        fill: impl FnOnce(&mut File) -> Result<u64>,
    ) -> Result<Option<u64>> {
        let fail = |error: io::Error| match error.kind() {
            // "No such file" while writing concerns a directory that vanished, not the object.
            io::ErrorKind::NotFound => Error::local(&self.location, &self.key, &self.path, &error),
            _ => Error::io(&self.location, &self.key, &error),
        };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let mut temporary = match temporary_in(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_directories(directory).map_err(fail)?;
                temporary_in(directory).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        let size = fill(temporary.as_file_mut())?;
        temporary.as_file().sync_all().map_err(fail)?;
        if replace {
            temporary
                .persist(&self.path)
                .map_err(|error| fail(error.error))?;
        } else if let Err(error) = temporary.persist_noclobber(&self.path) {
            return match error.error.kind() {
                io::ErrorKind::AlreadyExists => Ok(None),
                _ => Err(fail(error.error)),
            };
        }
        sync_directory(directory).map_err(fail)?;
        Ok(Some(size))
    }
}

/// An object that is a file of this machine, open for reading. Blocks as files do: not for async code.
#[derive(Debug)]
pub struct LocalObject {
    file: File,
    place: Place,
    /// Whether what is read counts in the process's metrics.
    metered: bool,
}

impl LocalObject {
    pub(crate) fn metered(self) -> LocalObject {
        LocalObject {
            metered: true,
            ..self
        }
    }

    /// Fills `to` with the bytes from `at` on; `ShortRead` where the object has fewer.
    pub fn read_at(&self, at: u64, to: &mut [u8]) -> Result<()> {
        match self.file.read_exact_at(to, at) {
            Ok(()) => {
                if self.metered {
                    metrics::count_bytes("read", to.len() as u64);
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let size = self.file.metadata().map_or(0, |meta| meta.len());
                let got = size.saturating_sub(at).min(to.len() as u64);
                Err(self.place.short(to.len() as u64, got))
            }
            Err(error) => Err(self.place.error(&error)),
        }
    }
}

fn temporary_in(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes a directory and its parents, each one durable in its parent.
fn make_directories(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        None => return Ok(()),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    };
    make_directories(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_directory(parent)
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    location: &str,
    key: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Other {
            location: location.to_owned(),
            key: key.to_owned(),
            message: format!("the file operation ended abnormally: {error}"),
        }),
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let place = self.place(key)?;
        blocking(&self.location(), key, move || {
            let (mut file, size) = place.open()?;
            let mut body = Vec::with_capacity(size as usize);
            file.read_to_end(&mut body)
                .map_err(|error| place.error(&error))?;
            Ok(body.into())
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let place = self.place(key)?;
        let expected = range.end.saturating_sub(range.start);
        // Taken here: memory that each thread of the pool takes once stays with it for long.
        let mut body = Vec::with_capacity(expected.min(TRUSTED) as usize);
        blocking(&self.location(), key, move || {
            let (mut file, size) = place.open()?;
            if range.end > size || range.start > range.end {
                return Err(place.short(expected, size.saturating_sub(range.start)));
            }
            file.seek(io::SeekFrom::Start(range.start))
                .and_then(|_| file.take(expected).read_to_end(&mut body))
                .map_err(|error| place.error(&error))?;
            match body.len() as u64 {
                got if got < expected => Err(place.short(expected, got)),
                _ => Ok(body.into()),
            }
        })
        .await
    }

    fn local(&self, key: &str) -> Option<Result<LocalObject>> {
        let open = || {
            let place = self.place(key)?;
            let (file, _) = place.open()?;
            Ok(LocalObject {
                file,
                place,
                metered: false,
            })
        };
        Some(open())
    }

    async fn download(&self, key: &str, to: &Path) -> Result<u64> {
        let (place, to) = (self.place(key)?, to.to_owned());
        blocking(&self.location(), key, move || {
            let (mut file, _) = place.open()?;
            let fail = |error: io::Error| Error::local(&place.location, &place.key, &to, &error);
            let mut target = File::create(&to).map_err(fail)?;
            io::copy(&mut file, &mut target).map_err(fail)
        })
        .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let place = self.place(key)?;
        blocking(&self.location(), key, move || {
            place.write(true, |file| {
                file.write_all(&body).map_err(|error| place.error(&error))?;
                Ok(body.len() as u64)
            })
        })
        .await
        .map(drop)
    }

    async fn upload(&self, key: &str, from: &Path) -> Result<u64> {
        let (place, from) = (self.place(key)?, from.to_owned());
        blocking(&self.location(), key, move || {
            let fail = |error: io::Error| Error::local(&place.location, &place.key, &from, &error);
            let mut source = File::open(&from).map_err(fail)?;
            let written = place.write(true, |file| io::copy(&mut source, file).map_err(fail))?;
            Ok(written.unwrap_or_default())
        })
        .await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<bool> {
        let place = self.place(key)?;
        blocking(&self.location(), key, move || {
            let written = place.write(false, |file| {
                file.write_all(&body).map_err(|error| place.error(&error))?;
                Ok(body.len() as u64)
            })?;
            Ok(written.is_some())
        })
        .await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        let place = self.place(key)?;
        blocking(&self.location(), key, move || {
            match fs::metadata(&place.path) {
                Ok(meta) if meta.is_file() => Ok(Some(object(place.key, &meta))),
                Ok(_) => Ok(None),
                Err(error) if is_gone(&error) => Ok(None),
                Err(error) => Err(place.error(&error)),
            }
        })
        .await
    }

    fn list<'a>(&'a self, prefix: &str) -> BoxStream<'a, Result<ObjectMeta>> {
        if let Err(error) = key::check_prefix(&self.location(), prefix) {
            return stream::iter([Err(error)]).boxed();
        }
        let prefix = prefix.to_owned();
        let start = prefix
            .rfind('/')
            .map(|end| prefix[..=end].to_owned())
            .unwrap_or_default();
        // One directory at a time is in memory, and the names of its parents' other entries.
        let pending = vec![Entry::Directory(start)];
        let walk = stream::try_unfold((pending, prefix), move |(mut pending, prefix)| async move {
            loop {
                match pending.pop() {
                    None => return Ok(None),
                    Some(Entry::Object(meta)) => return Ok(Some((meta, (pending, prefix)))),
                    Some(Entry::Directory(directory)) => {
                        let level = self.level(directory, true).await?.into_iter().rev();
                        pending.extend(level.filter(|entry| {
                            let name = entry.order();
                            name.starts_with(&prefix)
                                || matches!(entry, Entry::Directory(_)) && prefix.starts_with(name)
                        }));
                    }
                }
            }
        });
        walk.boxed()
    }

    async fn list_level(&self, prefix: &str) -> Result<Listing> {
        key::check_prefix(&self.location(), prefix)?;
        let mut listing = Listing::default();
        for entry in self.level(key::directory(prefix), false).await? {
            match entry {
                Entry::Directory(prefix) => listing.prefixes.push(prefix),
                Entry::Object(meta) => listing.objects.push(meta),
            }
        }
        Ok(listing)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let place = self.place(key)?;
        blocking(&self.location(), key, move || {
            let directory = place.path.parent().unwrap_or(Path::new("/"));
            let removed = fs::remove_file(&place.path).and_then(|()| sync_directory(directory));
            match removed {
                Err(error) if !is_gone(&error) => Err(place.error(&error)),
                _ => Ok(()),
            }
        })
        .await
    }

    async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        let place = self.place(prefix.trim_end_matches('/'))?;
        let directory = key::directory(prefix);
        let objects: u64 = self
            .list(&directory)
            .try_fold(0, |count, _| async move { Ok(count + 1) })
            .await?;
        blocking(&self.location(), prefix, move || {
            let parent = place.path.parent().unwrap_or(Path::new("/"));
            let removed = fs::remove_dir_all(&place.path).and_then(|()| sync_directory(parent));
            match removed {
                Err(error) if !is_gone(&error) => Err(place.error(&error)),
                _ => Ok(()),
            }
        })
        .await?;
        Ok(objects)
    }

    async fn presign_get(&self, key: &str, _ttl: Duration) -> Result<String> {
        let place = self.place(key)?;
        let absolute = std::path::absolute(&place.path).map_err(|error| place.error(&error))?;
        url::Url::from_file_path(absolute)
            .map(String::from)
            .map_err(|()| Error::Other {
                location: place.location,
                key: place.key,
                message: "this path has no file: URL".into(),
            })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let entries = fs::read_dir(root).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn a_killed_writer_leaves_nothing_that_is_seen() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::new(root.path());
        store.put("data/a", Bytes::from_static(b"1")).await.unwrap();
        let fresh = root.path().join("data").join(format!("{TEMPORARY}fresh"));
        let old = root.path().join("data").join(format!("{TEMPORARY}old"));
        for path in [&fresh, &old] {
            fs::write(path, "half").unwrap();
        }
        let file = File::options().write(true).open(&old).unwrap();
        file.set_modified(std::time::SystemTime::now() - 2 * listing::ABANDONED)
            .unwrap();
        let listed: Vec<_> = store
            .list("")
            .map_ok(|meta| meta.key)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(listed, ["data/a"]);
        assert!(
            fresh.exists() && !old.exists(),
            "only what is a day old is removed"
        );
        assert!(store.get(&format!("data/{TEMPORARY}fresh")).await.is_err());
    }

    #[tokio::test]
    async fn a_write_that_fails_leaves_no_file() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::new(root.path());
        let missing = root.path().join("no/such/file");
        store.upload("object", &missing).await.unwrap_err();
        assert_eq!(names(root.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn objects_are_plain_files_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::new(root.path());
        store
            .put("data/00/ab", Bytes::from_static(b"pack"))
            .await
            .unwrap();
        assert_eq!(fs::read(root.path().join("data/00/ab")).unwrap(), b"pack");
        let mode = fs::metadata(root.path().join("data/00/ab"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "others may not read backups: {mode:o}");
        let url = store
            .presign_get("data/00/ab", Duration::from_secs(1))
            .await
            .unwrap();
        assert!(
            url.starts_with("file:///") && url.ends_with("/data/00/ab"),
            "{url}"
        );
    }
}
