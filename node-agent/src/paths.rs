//! Where a pod's volume is on this node.
//!
//! `<host pods>/<pod UID>/volumes/<plugin>/<directory>`, `…/mount` for CSI. The directory is the PersistentVolume's name for a claim,
//! else the volume's name in the pod. Exactly one must exist (velero-compat: "expected one matching path").

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::mounts;

const CSI: &str = "kubernetes.io~csi";

/// Why a volume's directory cannot be used. Every text names the path and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The volume has no directory of its own below the pod's.
    #[error(
        "expected one matching path: {pattern}, got 0; volumes of this kind may have no directory of their own (hostPath), \
         or {host_pods} is not the kubelet's pods directory"
    )]
    None {
        /// What was looked for.
        pattern: String,
        /// `--host-pods`.
        host_pods: String,
    },
    /// Two plugins have a directory of this name.
    #[error("expected one matching path: {pattern}, got {count}")]
    Several {
        /// What was looked for.
        pattern: String,
        /// How many there are.
        count: usize,
    },
    /// The directory is there but the volume is not mounted in it, as far as this process sees.
    #[error(
        "{path} is not a mount point: this node agent does not see the volume (its mount of the kubelet's pods directory needs \
         mountPropagation: HostToContainer, or the volume is not mounted on this node)"
    )]
    NotMounted {
        /// The directory.
        path: String,
    },
    /// Block volumes have no files.
    #[error("volume {volume} is a block device; only file systems can be backed up")]
    Block {
        /// The volume's name in the pod.
        volume: String,
    },
    /// The node's file system failed.
    #[error("{path} cannot be read")]
    Io {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What identifies a volume's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub pod_uid: String,
    /// Name of the directory: PersistentVolume or volume name.
    pub directory: String,
    /// Medium, for an `emptyDir`.
    pub medium: Option<String>,
}

/// A volume's directory, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// As `status.path` and the snapshot show it.
    pub path: PathBuf,
    /// Mount id where the volume is a mount: the same before and after means that it was there all the time.
    mount: Option<u64>,
    /// Device and inode of the directory, for the others.
    inode: (u64, u64),
}

impl Found {
    /// Whether the volume is still the one that was found.
    pub fn still_there(&self) -> bool {
        look(&self.path, self.mount.is_some()).is_ok_and(|now| now == *self)
    }
}

/// Finds and checks the directory. Blocking: a dead network volume can hang here, so call it off the async threads.
pub(crate) fn resolve(host_pods: &Path, wanted: &Wanted) -> Result<Found, PathError> {
    // The UID and the directory come from objects of the API: neither may lead out of the pod's directory.
    let safe = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    let pattern = host_pods
        .join(&wanted.pod_uid)
        .join("volumes/*")
        .join(&wanted.directory)
        .display()
        .to_string();
    let none = || PathError::None {
        pattern: pattern.clone(),
        host_pods: host_pods.display().to_string(),
    };
    if !safe(&wanted.pod_uid) || !safe(&wanted.directory) {
        return Err(none());
    }
    let volumes = host_pods.join(&wanted.pod_uid).join("volumes");
    let plugins = match std::fs::read_dir(&volumes) {
        Ok(plugins) => plugins,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(source) => return Err(io_error(&volumes, source)),
    };
    let mut matches = Vec::new();
    for plugin in plugins {
        let plugin = plugin
            .map_err(|source| io_error(&volumes, source))?
            .file_name();
        let mut path = volumes.join(&plugin).join(&wanted.directory);
        if plugin == CSI {
            path.push("mount");
        }
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            matches.push((plugin.to_string_lossy().into_owned(), path));
        }
    }
    let count = matches.len();
    let (plugin, path) = match matches.pop() {
        None => return Err(none()),
        Some(_) if count > 1 => return Err(PathError::Several { pattern, count }),
        Some(found) => found,
    };
    look(
        &path,
        mounts::must_be_mount(&plugin, wanted.medium.as_deref()),
    )
}

fn look(path: &Path, must_be_mount: bool) -> Result<Found, PathError> {
    use std::os::unix::fs::MetadataExt;
    let real = path
        .canonicalize()
        .map_err(|source| io_error(path, source))?;
    let mount = mounts::mount_at(&real).map_err(|source| io_error(&real, source))?;
    if must_be_mount && mount.is_none() {
        return Err(PathError::NotMounted {
            path: path.display().to_string(),
        });
    }
    let meta = path
        .symlink_metadata()
        .map_err(|source| io_error(path, source))?;
    Ok(Found {
        path: path.to_owned(),
        mount,
        inode: (meta.dev(), meta.ino()),
    })
}

fn io_error(path: &Path, source: io::Error) -> PathError {
    PathError::Io {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "7c0a6f7e-1111-2222-3333-444455556666";

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            std::fs::create_dir_all(dir.path().join(UID).join("volumes").join(path)).unwrap();
        }
        dir
    }

    fn wanted(directory: &str) -> Wanted {
        Wanted {
            pod_uid: UID.to_owned(),
            directory: directory.to_owned(),
            medium: None,
        }
    }

    #[test]
    fn an_empty_dir_on_disk_needs_no_mount() {
        let dir = tree(&[
            "kubernetes.io~empty-dir/cache",
            "kubernetes.io~projected/token",
        ]);
        let found = resolve(dir.path(), &wanted("cache")).unwrap();
        assert!(
            found
                .path
                .ends_with("volumes/kubernetes.io~empty-dir/cache")
        );
        assert!(found.still_there());
    }

    #[test]
    fn an_empty_dir_in_memory_must_be_mounted() {
        let dir = tree(&["kubernetes.io~empty-dir/cache"]);
        let memory = Wanted {
            medium: Some("Memory".to_owned()),
            ..wanted("cache")
        };
        let error = resolve(dir.path(), &memory).unwrap_err();
        assert!(matches!(error, PathError::NotMounted { .. }), "{error}");
    }

    #[test]
    fn a_claims_bare_directory_is_refused_by_name() {
        for plugin in [
            "kubernetes.io~local-volume/pv1",
            "kubernetes.io~csi/pv1/mount",
            "kubernetes.io~nfs/pv1",
        ] {
            let dir = tree(&[plugin]);
            let error = resolve(dir.path(), &wanted("pv1")).unwrap_err();
            assert!(
                matches!(error, PathError::NotMounted { .. }),
                "{plugin}: {error}"
            );
            assert!(error.to_string().contains("mountPropagation"), "{error}");
        }
    }

    #[test]
    fn a_csi_volume_without_its_mount_directory_does_not_match() {
        let dir = tree(&["kubernetes.io~csi/pv1"]);
        let error = resolve(dir.path(), &wanted("pv1")).unwrap_err();
        assert!(matches!(error, PathError::None { .. }), "{error}");
    }

    #[test]
    fn exactly_one_must_match() {
        let dir = tree(&["kubernetes.io~empty-dir/data", "kubernetes.io~nfs/data"]);
        let error = resolve(dir.path(), &wanted("data")).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "expected one matching path: {}/{UID}/volumes/*/data, got 2",
                dir.path().display()
            )
        );
        let error = resolve(dir.path(), &wanted("other")).unwrap_err();
        assert!(error.to_string().contains("got 0"), "{error}");
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        let dir = tree(&["kubernetes.io~empty-dir/data"]);
        for directory in ["../..", "..", "", "a/b"] {
            assert!(
                resolve(dir.path(), &wanted(directory)).is_err(),
                "{directory}"
            );
        }
        let outside = Wanted {
            pod_uid: "..".to_owned(),
            ..wanted("data")
        };
        assert!(resolve(dir.path(), &outside).is_err());
    }

    #[test]
    fn a_replaced_directory_is_noticed() {
        let dir = tree(&["kubernetes.io~empty-dir/data"]);
        let found = resolve(dir.path(), &wanted("data")).unwrap();
        std::fs::rename(&found.path, dir.path().join("old")).unwrap();
        assert!(!found.still_there());
        std::fs::create_dir(&found.path).unwrap();
        assert!(!found.still_there());
    }
}
