//! Whether a restored tree is the one that was backed up.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Compares names, types, modes, owners, times, link targets and every byte. Says the first difference.
pub(crate) fn same(expected: &Path, found: &Path) -> Result<()> {
    let (a, b) = (
        fs::symlink_metadata(expected)?,
        fs::symlink_metadata(found)?,
    );
    let facts = |meta: &fs::Metadata| {
        let size = if meta.is_dir() { 0 } else { meta.size() };
        (
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec(),
            size,
        )
    };
    if facts(&a) != facts(&b) {
        bail!(
            "{}: {:?}, restored: {:?}",
            expected.display(),
            facts(&a),
            facts(&b)
        );
    }
    if a.is_symlink() && fs::read_link(expected)? != fs::read_link(found)? {
        bail!("{}: other link target", expected.display());
    }
    if a.is_file() {
        return same_content(expected, found)
            .with_context(|| format!("compare {}", expected.display()));
    }
    if a.is_dir() {
        same_entries(expected, found)?;
    }
    Ok(())
}

/// The same for what is in two directories, but for the directories themselves: the root of a restore is
/// the caller's.
pub(crate) fn same_entries(expected: &Path, found: &Path) -> Result<()> {
    let names = |directory: &Path| -> Result<Vec<_>> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
        let mut names = entries.collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let (inside, restored) = (names(expected)?, names(found)?);
    if inside != restored {
        bail!("{}: other entries", expected.display());
    }
    for name in inside {
        same(&expected.join(&name), &found.join(&name))?;
    }
    Ok(())
}

fn same_content(expected: &Path, found: &Path) -> Result<()> {
    let (mut a, mut b) = (File::open(expected)?, File::open(found)?);
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut offset = 0;
    loop {
        let got = a.read(&mut x)?;
        if got == 0 {
            return Ok(());
        }
        b.read_exact(&mut y[..got])?;
        if x[..got] != y[..got] {
            bail!("differs within the {got} bytes at {offset}");
        }
        offset += got;
    }
}

/// The sum of the sizes of all files below a directory.
pub(crate) fn size(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory)? {
        let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
        sum += if meta.is_dir() {
            size(&path)?
        } else {
            meta.len()
        };
    }
    Ok(sum)
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        let make = |root: &Path| {
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("d/f"), "content").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
            for path in ["d/f", "d", ""] {
                File::open(root.join(path))
                    .unwrap()
                    .set_modified(time)
                    .unwrap();
            }
        };
        make(&a);
        make(&b);
        same(&a, &b).unwrap();
        assert_eq!(size(&a).unwrap(), 7);
        fs::write(b.join("d/f"), "CONTENT").unwrap();
        assert!(same(&a, &b).is_err(), "the time");
        make(&b);
        fs::write(b.join("d/f"), "c0ntent").unwrap();
        let time = fs::metadata(a.join("d/f")).unwrap().modified().unwrap();
        File::open(b.join("d/f"))
            .unwrap()
            .set_modified(time)
            .unwrap();
        assert!(
            format!("{:#}", same(&a, &b).unwrap_err()).contains("differs"),
            "the content"
        );
        make(&b);
        fs::write(b.join("d/g"), "").unwrap();
        assert!(same(&a, &b).is_err(), "one file more");
    }
}
