//! Every name that ends up in a cluster or a bucket.

use sha2::{Digest, Sha256};

/// API group of Velero.
pub const VELERO_GROUP: &str = "velero.io";
/// API group of Jackline.
pub const JACKLINE_GROUP: &str = "jackline.dev";
/// The namespace that Velero, and so Jackline, lives in by default.
pub const DEFAULT_NAMESPACE: &str = "velero";

/// The field manager of server-side apply on objects of users (annotations) and of our own kinds.
pub const FIELD_MANAGER: &str = "jackline";
/// The field manager of the node agents.
pub const AGENT_FIELD_MANAGER: &str = "jackline-node-agent";

/// Name of the one BackupCoverage of a namespace.
pub const COVERAGE: &str = "coverage";

/// Name of the Deployment of the controller.
pub const CONTROLLER: &str = "jackline-controller";
/// Name of the DaemonSet, and value of the label `name`, of the node agents.
pub const NODE_AGENT: &str = "node-agent";
/// Label and value that select node agent pods, as every Velero has them; `role` came with 1.15.
pub const NODE_AGENT_LABEL: (&str, &str) = ("name", NODE_AGENT);
/// Secret with the password of the repositories.
pub const REPOSITORY_SECRET: &str = "velero-repo-credentials";
/// Its key.
pub const REPOSITORY_PASSWORD_KEY: &str = "repository-password";
/// Name of the init container that holds a pod back until its volumes are restored.
pub const RESTORE_WAIT: &str = "restore-wait";
/// The program in it, in the node agent's image.
pub const RESTORE_WAIT_PROGRAM: &str = "jackline-restore-wait";
/// Directory in a volume where a finished restore leaves a file named as the restore's UID.
pub const RESTORE_DONE_DIR: &str = ".velero";
/// Host name that snapshots carry.
pub const SNAPSHOT_HOST: &str = "velero";

/// Labels.
pub mod label {
    /// The backup that an object belongs to or came from.
    pub const BACKUP_NAME: &str = "velero.io/backup-name";
    /// UID of that backup.
    pub const BACKUP_UID: &str = "velero.io/backup-uid";
    /// The restore that made an object.
    pub const RESTORE_NAME: &str = "velero.io/restore-name";
    /// UID of that restore.
    pub const RESTORE_UID: &str = "velero.io/restore-uid";
    /// The schedule, or the policy, that made a backup.
    pub const SCHEDULE_NAME: &str = "velero.io/schedule-name";
    /// The BackupStorageLocation of a backup or repository.
    pub const STORAGE_LOCATION: &str = "velero.io/storage-location";
    /// UID of the pod of a PodVolumeRestore.
    pub const POD_UID: &str = "velero.io/pod-uid";
    /// UID of the claim of a PodVolumeBackup or PodVolumeRestore.
    pub const PVC_UID: &str = "velero.io/pvc-uid";
    /// The namespace of a repository.
    pub const VOLUME_NAMESPACE: &str = "velero.io/volume-namespace";
    /// The format of a repository.
    pub const REPOSITORY_TYPE: &str = "velero.io/repository-type";
    /// The repository that a maintenance Job works on.
    pub const REPOSITORY_NAME: &str = "velero.io/repo-name";
    /// `true` leaves an object or a namespace out of backups.
    pub const EXCLUDE_FROM_BACKUP: &str = "velero.io/exclude-from-backup";
    /// Why an expired backup could not be deleted.
    pub const GC_FAILURE: &str = "velero.io/gc-failure";
    /// Name of the ClusterBackupPolicy or BackupPolicy that made a backup.
    pub const POLICY: &str = "jackline.dev/policy";
    /// Namespace of the BackupPolicy that made a backup.
    pub const POLICY_NAMESPACE: &str = "jackline.dev/policy-namespace";
    /// UID of the policy that made a backup.
    pub const POLICY_UID: &str = "jackline.dev/policy-uid";
    /// UID of the kube-system namespace of the cluster that a backup was made in.
    pub const CLUSTER_UID: &str = "jackline.dev/cluster-uid";
    /// On a pod in which a backup has to run commands after its volumes were read: `owed`. Also the annotation that names them.
    pub const POST_HOOKS: &str = "jackline.dev/post-hooks";
    /// UID of the claim that a restored claim, or a backup of it, descends from.
    pub const ANCESTOR_CLAIM_UID: &str = "jackline.dev/ancestor-claim-uid";
}

/// Annotations.
pub mod annotation {
    /// On a pod: the volumes to back up, comma separated (opt-in).
    pub const BACKUP_VOLUMES: &str = "backup.velero.io/backup-volumes";
    /// On a pod: the volumes not to back up, comma separated (opt-out).
    pub const BACKUP_VOLUMES_EXCLUDES: &str = "backup.velero.io/backup-volumes-excludes";
    /// On a PodVolumeBackup: name of the claim.
    pub const PVC_NAME: &str = "velero.io/pvc-name";
    /// On a Backup: the version of the API server, such as v1.36.3.
    pub const SOURCE_CLUSTER_VERSION: &str = "velero.io/source-cluster-k8s-gitversion";
    /// On a Backup: its major version.
    pub const SOURCE_CLUSTER_MAJOR: &str = "velero.io/source-cluster-k8s-major-version";
    /// On a Backup: its minor version.
    pub const SOURCE_CLUSTER_MINOR: &str = "velero.io/source-cluster-k8s-minor-version";
    /// On a Backup: how long single resources may take.
    pub const RESOURCE_TIMEOUT: &str = "velero.io/resource-timeout";
    /// On a Backup or Restore: how long the volumes may take.
    pub const POD_VOLUME_TIMEOUT: &str = "velero.io/pod-volume-timeout";
    /// On any object: whether its status is restored.
    pub const RESTORE_STATUS: &str = "velero.io/restore-status";
    /// On a pod: the commands that a backup has to run in it after its volumes were read; JSON. It is there while they are owed.
    pub const POST_HOOKS: &str = super::label::POST_HOOKS;
    /// Prefix, on a Backup in progress: UID of a pod to what became of its hooks; JSON.
    pub const HOOKS_PREFIX: &str = "hooks.jackline.dev/";
    /// On a restored pod: UID of the restore whose commands have begun to run in it; when they are over, also how many ran and failed.
    pub const RESTORE_HOOKS: &str = "jackline.dev/restore-hooks";
    /// On a restored pod that waits for data which will not come: why. Its `restore-wait` reads it and ends.
    pub const RESTORE_OVER: &str = "jackline.dev/restore-over";
    /// On a restored pod whose data is back: the UID of the restore. Its waiter has nothing to wait for when it runs again.
    pub const RESTORED: &str = "jackline.dev/restored";
    /// On a Restore: the kinds whose objects it has made, so that whoever takes it over makes none of them again; JSON.
    pub const RESTORED_KINDS: &str = "jackline.dev/restored-kinds";
    /// On a claim, pod or namespace: `true` takes it out of the policies. Needs a reason.
    pub const EXEMPT: &str = "jackline.dev/exempt";
    /// On the same: why.
    pub const EXEMPT_REASON: &str = "jackline.dev/exempt-reason";
    /// On a restored claim: UID of the claim that its data came from. Also a label of its backups.
    pub const ANCESTOR_CLAIM_UID: &str = super::label::ANCESTOR_CLAIM_UID;
    /// On a Backup: UID of the kube-system namespace of the cluster. Also a label.
    pub const CLUSTER_UID: &str = super::label::CLUSTER_UID;
    /// On a Backup: the policy that made it, as `name` or `namespace/name`, never shortened.
    pub const POLICY: &str = "jackline.dev/policy";
    /// On a Backup that has ended: how many of its PodVolumeBackups have a snapshot. Fewer records than that are not all there were.
    pub const POD_VOLUME_BACKUPS: &str = "jackline.dev/pod-volume-backups";
    /// On a Backup or Restore: the leader that wrote its phase, as the epoch of its Lease. An earlier one writes it no more.
    pub const LEADER_EPOCH: &str = "jackline.dev/leader-epoch";
    /// On a PodVolumeBackup: since when its volume is known to exist no more, RFC 3339.
    pub const VOLUME_GONE_SINCE: &str = "jackline.dev/volume-gone-since";
    /// On a Backup of Velero: `true` lets its snapshots stay where they are, without a record, when it is deleted.
    pub const LEAVE_SNAPSHOTS: &str = "jackline.dev/leave-snapshots";
    /// On a Backup that is being deleted: the UID of what the bucket held under its name when that began, or nothing.
    pub const DELETED_UID: &str = "jackline.dev/deleted-uid";
    /// On a Backup: the time it was due, RFC 3339.
    pub const TICK: &str = "jackline.dev/tick";
    /// On a Backup: the volumes it moves, as the policy governs them; JSON.
    pub const GOVERNED_VOLUMES: &str = "jackline.dev/governed-volumes";
    /// On a BackupRepository: since when snapshots have been forgotten whose data was not pruned yet, RFC 3339.
    pub const FORGOTTEN_AT: &str = "jackline.dev/forgotten-at";
    /// On a BackupRepository: how often it is checked, as a Go duration.
    pub const CHECK_FREQUENCY: &str = "jackline.dev/check-frequency";
    /// On the same: how much of its data every check reads, in percent.
    pub const CHECK_READ_DATA: &str = "jackline.dev/check-read-data";
    /// On the same: when the last check that found nothing wrong began, RFC 3339. On its Jobs: that they check.
    pub const CHECKED_AT: &str = "jackline.dev/checked-at";
    /// On the same: when the last maintenance that its status tells of began, RFC 3339.
    pub const MAINTAINED_AT: &str = "jackline.dev/maintained-at";
    /// On the Secret of the repositories' password: the SHA-256 of the one that was made here, when no repository was known.
    pub const PASSWORD_MADE: &str = "jackline.dev/password-made";
    /// On a PodVolumeRestore: the node whose agent has begun it.
    pub const NODE: &str = "jackline.dev/node";
    /// On a PodVolumeRestore of a shared claim: every pod that waited for the data has gone on.
    pub const WAITERS_LEFT: &str = "jackline.dev/waiters-left";
    /// On a policy: confirms a held mass deletion. The value is the present time, RFC 3339; it counts for a day.
    pub const CONFIRM_DELETION: &str = "jackline.dev/confirm-deletion";
}

/// Finalizers.
pub mod finalizer {
    /// Of a Restore: its files in the bucket go first.
    pub const RESTORE: &str = "restores.velero.io/external-resources-finalizer";
    /// Of DataUpload and DataDownload.
    pub const DATA_MOVER: &str = "velero.io/data-upload-download-finalizer";
    /// Of a Backup that is in progress: what it has left in the repositories goes first.
    pub const BACKUP: &str = "jackline.dev/backup";
    /// Of a policy whose backups go with it.
    pub const POLICY: &str = "jackline.dev/policy";
}

/// Longest value of a label.
pub const LABEL_MAX: usize = 63;

/// A label value that stands for a name: the name itself, or when it is too long its first 57 characters and the first 6 hex digits
/// of its SHA-256.
#[must_use]
pub fn label_value(name: &str) -> String {
    if name.len() <= LABEL_MAX {
        return name.to_owned();
    }
    // Names are ASCII; anything else is cut at a character all the same.
    let head: String = name.chars().take(LABEL_MAX - 6).collect();
    format!("{head}{}", short_hash(name, 6))
}

/// The first hex digits of a text's SHA-256, at most 64.
#[must_use]
pub fn short_hash(text: &str, digits: usize) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(text.as_bytes()) {
        hex.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        hex.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    hex.truncate(digits);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_stay() {
        let longest = "a".repeat(63);
        assert_eq!(label_value(&longest), longest);
        assert_eq!(label_value("daily"), "daily");
    }

    #[test]
    fn long_names_are_cut_and_told_apart() {
        let (a, b) = ("x".repeat(64), format!("{}y", "x".repeat(63)));
        // sha256 of 64 times "x" begins with 7ce100.
        assert_eq!(label_value(&a), format!("{}7ce100", "x".repeat(57)));
        assert_eq!(label_value(&a).len(), 63);
        assert_ne!(label_value(&a), label_value(&b));
    }
}
