//! How many PodVolumeBackups of a bucket the cluster takes. Anybody may have written them, under any number of backups, and each fills
//! etcd and this process's memory.

use std::sync::Arc;

use jackline_crds::velero::PodVolumeBackup;

use super::read::weight;

/// Most memory that the PodVolumeBackups of one location take, about: half of what the controller has, more than 50,000 as Velero
/// writes them.
const LIMIT: usize = 256 << 20;

/// The room that one look at a bucket finds.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// `None`: nobody needed to know yet.
    left: Option<usize>,
}

impl Room {
    /// Takes the room for `more`, or none of it; `here`: all of the location that the cluster has.
    pub fn take(
        &mut self,
        more: &[PodVolumeBackup],
        here: impl FnOnce() -> Vec<Arc<PodVolumeBackup>>,
    ) -> Result<(), String> {
        if more.is_empty() {
            return Ok(());
        }
        let left = self.left.get_or_insert_with(|| {
            let taken: usize = here().iter().map(|volume| weight(volume)).sum();
            LIMIT.saturating_sub(taken)
        });
        let wanted = more.iter().map(weight).sum();
        match left.checked_sub(wanted) {
            Some(less) => {
                *left = less;
                Ok(())
            }
            None => Err(format!(
                "its {} PodVolumeBackups stay in the bucket, where restores and deletions read them: the cluster takes no more than \
                 {LIMIT} bytes of those of a location",
                more.len()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(count: usize, bytes: usize) -> Vec<PodVolumeBackup> {
        let mut volume = PodVolumeBackup::new("b-1", Default::default());
        volume.spec.volume = "v".repeat(bytes);
        vec![volume; count]
    }

    #[test]
    fn the_volumes_of_a_location_fill_the_cluster_up_to_a_limit() {
        let mut room = Room::default();
        let here = || volumes(3, LIMIT / 4).into_iter().map(Arc::new).collect();
        assert!(room.take(&volumes(2, LIMIT / 16), here).is_ok());
        // What this look has made itself is not in the cluster's list yet.
        let again = || unreachable!("the cluster is asked once");
        let why = room.take(&volumes(2, LIMIT / 16), again).unwrap_err();
        assert!(why.starts_with("its 2 PodVolumeBackups stay"), "{why}");
        // A smaller list has room.
        assert!(room.take(&volumes(1, LIMIT / 16), again).is_ok());
        assert!(room.take(&[], again).is_ok());
    }

    #[test]
    fn a_cluster_that_is_full_takes_none() {
        let here = || volumes(5, LIMIT / 4).into_iter().map(Arc::new).collect();
        assert!(Room::default().take(&volumes(1, 0), here).is_err());
    }
}
