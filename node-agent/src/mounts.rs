//! Is a volume's directory the volume, or only the empty directory underneath?
//!
//! The kubelet makes a directory for each volume and mounts most kinds onto it. An agent whose `/host_pods` does not receive later
//! mounts (no `mountPropagation: HostToContainer`) sees the bare directory: it would back up nothing, call it done, and restore onto
//! the node's own disk. So for every kind that is a mount the directory must be a mount point in *our* mount table.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// Volume plugins (directory names below `volumes/`) whose volumes are plain directories: the kubelet writes files into them, or the
/// workload does. Everything else (claims of every kind, CSI, NFS, iSCSI, …) is mounted.
const PLAIN: &[&str] = &[
    "kubernetes.io~empty-dir",
    "kubernetes.io~git-repo",
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
];

/// Whether a volume of this plugin must be a mount point. `medium` is that of an `emptyDir`: those in memory and on huge pages are
/// mounts, those on the node's disk are not.
pub(crate) fn must_be_mount(plugin: &str, medium: Option<&str>) -> bool {
    if plugin == "kubernetes.io~empty-dir" {
        return medium.is_some_and(|medium| !medium.is_empty());
    }
    !PLAIN.contains(&plugin)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Unique among the living mounts: another id means unmounted and mounted anew.
    pub id: u64,
    pub point: PathBuf,
}

/// Parses a mount table; lines that do not have its form are left out.
pub(crate) fn parse(table: &[u8]) -> Vec<Mount> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            let point = fields.nth(3)?;
            Some(Mount {
                id,
                point: PathBuf::from(OsStr::from_bytes(&unescape(point))),
            })
        })
        .collect()
}

/// `\040` and the like, as the kernel writes space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        match octal {
            Some(digits) => {
                let value = digits
                    .iter()
                    .fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                out.push(u8::try_from(value).unwrap_or(b'?'));
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The topmost mount at exactly `path` (which must be canonical), if there is one.
pub(crate) fn mount_at(path: &Path) -> io::Result<Option<u64>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(find(&parse(&table), path))
}

fn find(mounts: &[Mount], path: &Path) -> Option<u64> {
    mounts
        .iter()
        .rev()
        .find(|mount| mount.point == path)
        .map(|mount| mount.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_kinds_are_mounts() {
        for (plugin, medium, expected) in [
            ("kubernetes.io~local-volume", None, true),
            ("kubernetes.io~csi", None, true),
            ("kubernetes.io~nfs", None, true),
            ("kubernetes.io~iscsi", None, true),
            ("vendor~flex", None, true),
            ("kubernetes.io~projected", None, true),
            ("kubernetes.io~empty-dir", None, false),
            ("kubernetes.io~empty-dir", Some(""), false),
            ("kubernetes.io~empty-dir", Some("Memory"), true),
            ("kubernetes.io~empty-dir", Some("HugePages-2Mi"), true),
            ("kubernetes.io~configmap", None, false),
        ] {
            assert_eq!(
                must_be_mount(plugin, medium),
                expected,
                "{plugin} {medium:?}"
            );
        }
    }

    #[test]
    fn the_kernels_escapes_are_undone() {
        let table =
            b"36 35 98:0 /mnt1 /mnt/with\\040space rw,noatime master:1 - ext3 /dev/root rw\n\
                      37 35 0:3 / /host_pods/u\\134x rw shared:2 - tmpfs tmpfs rw\nrubbish\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!(find(&mounts, Path::new("/mnt/with space")), Some(36));
        assert_eq!(find(&mounts, Path::new("/host_pods/u\\x")), Some(37));
        assert_eq!(
            find(&mounts, Path::new("/mnt")),
            None,
            "a parent is not the mount point"
        );
    }

    #[test]
    fn the_topmost_of_stacked_mounts_counts() {
        let mounts = parse(b"1 0 0:1 / /a rw - t t rw\n2 0 0:2 / /a rw - t t rw\n");
        assert_eq!(find(&mounts, Path::new("/a")), Some(2));
    }

    #[test]
    fn the_real_table_knows_proc() {
        assert!(mount_at(Path::new("/proc")).unwrap().is_some());
        assert_eq!(mount_at(Path::new("/proc/self")).unwrap(), None);
    }
}
