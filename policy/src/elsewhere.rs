//! Copies of volumes that Jackline can neither restore nor delete: a Velero with its plugins took them, and the backup's files are the
//! only record of where they are (velero-compat §3.5).

use serde::Deserialize;

/// How a volume was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, strum::Display)]
pub enum Method {
    #[strum(to_string = "native snapshot")]
    Native,
    #[strum(to_string = "CSI snapshot")]
    Csi,
    /// Its data was moved to the bucket.
    #[strum(to_string = "moved snapshot")]
    Moved,
    #[strum(to_string = "copy by kopia")]
    Kopia,
}

/// One such copy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Elsewhere {
    /// The claim's namespace, or the pod's where the volume has no claim.
    pub namespace: String,
    /// The claim, where it is known.
    pub claim: Option<String>,
    /// The persistent volume, where it is known; else the pod's volume.
    pub volume: String,
    pub method: Method,
    /// Velero did not bring it to an end: there is nothing to lose.
    pub failed: bool,
}

impl Elsewhere {
    /// What a person calls it.
    pub fn what(&self) -> String {
        let Self {
            namespace, volume, ..
        } = self;
        match &self.claim {
            Some(claim) => format!("{} of claim {namespace}/{claim}", self.method),
            None if namespace.is_empty() => format!("{} of volume {volume}", self.method),
            None => format!(
                "{} of volume {volume} in namespace {namespace}",
                self.method
            ),
        }
    }
}

/// An entry of `-volumeinfo.json.gz`, as far as it is of use.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeInfo {
    pvc_name: String,
    pvc_namespace: String,
    pv_name: String,
    backup_method: String,
    snapshot_data_moved: bool,
    skipped: bool,
    result: String,
    pvb_info: Option<PodVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodVolume {
    uploader_type: String,
    volume_name: String,
    pod_namespace: String,
}

impl VolumeInfo {
    /// The copy that it tells of, unless it is one of restic.
    pub fn elsewhere(self) -> Option<Elsewhere> {
        let pod = self.pvb_info.unwrap_or_default();
        let method = match self.backup_method.as_str() {
            _ if self.skipped => return None,
            _ if self.snapshot_data_moved => Method::Moved,
            "NativeSnapshot" => Method::Native,
            "CSISnapshot" => Method::Csi,
            "PodVolumeBackup" if pod.uploader_type == "kopia" => Method::Kopia,
            _ => return None,
        };
        let claim = Some(self.pvc_name).filter(|name| !name.is_empty());
        let or = |first: String, second: String| if first.is_empty() { second } else { first };
        Some(Elsewhere {
            namespace: or(self.pvc_namespace, pod.pod_namespace),
            claim,
            volume: or(self.pv_name, pod.volume_name),
            method,
            failed: self.result == "failed",
        })
    }
}

/// An entry of `-volumesnapshots.json.gz`: all that a Velero before 1.13 says.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct NativeSnapshot {
    spec: NativeSpec,
    status: NativeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NativeSpec {
    persistent_volume_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NativeStatus {
    phase: String,
}

impl NativeSnapshot {
    pub fn elsewhere(self) -> Elsewhere {
        Elsewhere {
            namespace: String::new(),
            claim: None,
            volume: self.spec.persistent_volume_name,
            method: Method::Native,
            failed: self.status.phase == "Failed",
        }
    }
}

/// An entry of `-csi-volumesnapshots.json.gz`, of such a Velero too.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CsiSnapshot {
    metadata: CsiMetadata,
    spec: CsiSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CsiMetadata {
    namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CsiSpec {
    source: CsiSource,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CsiSource {
    persistent_volume_claim_name: Option<String>,
}

impl CsiSnapshot {
    pub fn elsewhere(self) -> Elsewhere {
        Elsewhere {
            namespace: self.metadata.namespace,
            claim: self.spec.source.persistent_volume_claim_name,
            volume: String::new(),
            method: Method::Csi,
            failed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn info(entry: Value) -> Option<String> {
        let info: VolumeInfo = serde_json::from_value(entry).unwrap();
        info.elsewhere().map(|found| found.what())
    }

    #[test]
    fn what_was_not_saved_by_restic_is_elsewhere() {
        let cases = [
            (
                json!({"backupMethod": "PodVolumeBackup", "pvcName": "c", "pvcNamespace": "shop",
                "pvbInfo": {"uploaderType": "restic"}}),
                None,
            ),
            (
                json!({"skipped": true, "pvcName": "c", "pvcNamespace": "shop"}),
                None,
            ),
            (
                json!({"backupMethod": "NativeSnapshot", "pvcName": "c", "pvcNamespace": "shop", "pvName": "pv-1",
                "snapshotDataMoved": false, "skipped": false, "nativeSnapshotInfo": {"snapshotHandle": "s"}}),
                Some("native snapshot of claim shop/c"),
            ),
            (
                json!({"backupMethod": "CSISnapshot", "pvcName": "c", "pvcNamespace": "shop"}),
                Some("CSI snapshot of claim shop/c"),
            ),
            (
                json!({"backupMethod": "CSISnapshot", "snapshotDataMoved": true, "pvcName": "c", "pvcNamespace": "shop"}),
                Some("moved snapshot of claim shop/c"),
            ),
            (
                json!({"backupMethod": "PodVolumeBackup", "pvbInfo": {"uploaderType": "kopia", "volumeName": "tmp",
                "podName": "p", "podNamespace": "shop"}}),
                Some("copy by kopia of volume tmp in namespace shop"),
            ),
        ];
        for (entry, want) in cases {
            assert_eq!(info(entry.clone()).as_deref(), want, "{entry}");
        }
    }

    #[test]
    fn the_lists_of_an_older_velero_are_read_too() {
        let native = json!({"spec": {"backupName": "b", "persistentVolumeName": "pv-1", "volumeIOPS": null},
            "status": {"providerSnapshotID": "s", "phase": "Completed"}});
        let native: NativeSnapshot = serde_json::from_value(native).unwrap();
        assert_eq!(native.elsewhere().what(), "native snapshot of volume pv-1");
        let csi = json!({"kind": "VolumeSnapshot", "metadata": {"namespace": "shop", "name": "s"},
            "spec": {"source": {"persistentVolumeClaimName": "c"}}});
        let csi: CsiSnapshot = serde_json::from_value(csi).unwrap();
        assert_eq!(csi.elsewhere().what(), "CSI snapshot of claim shop/c");
    }
}
