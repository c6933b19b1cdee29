//! Names that are pure functions of what they stand for, so that a second attempt finds the first one's object.

use jiff::{Timestamp, tz::TimeZone};

use crate::spec::{PolicyId, PolicyKind};

/// Longest label value. A Backup's name goes into labels of everything that belongs to it, unshortened wherever possible.
const LONGEST: usize = 63;
/// Longest name of an object.
pub const LONGEST_NAME: usize = 253;
/// `-YYYYMMDDhhmmss`
const TICK: usize = 15;

/// Value of `velero.io/schedule-name` on a policy's backups: `<policy>`, of a BackupPolicy `<namespace>-<policy>`; the end is replaced by
/// a hash of the whole identity where a backup's name would become longer than a label value.
pub fn schedule_name(policy: &PolicyId) -> String {
    let full = match policy.kind {
        PolicyKind::ClusterBackupPolicy => policy.name.clone(),
        PolicyKind::BackupPolicy => format!("{}-{}", policy.namespace, policy.name),
    };
    shorten(full, &policy.to_string(), LONGEST - TICK)
}

/// Name of the Backup of one tick: `<schedule name>-<YYYYMMDDhhmmss>` in UTC.
pub fn backup_name(schedule_name: &str, tick: Timestamp) -> String {
    let suffix = tick
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%d%H%M%S")
        .to_string();
    format!("{schedule_name}-{suffix}")
}

/// Name of the request that deletes a backup; one per Backup object, however often it is asked for.
pub fn delete_request_name(backup: &str, backup_uid: &str) -> String {
    let suffix = format!("-{:010x}", hash(backup_uid) & 0xff_ffff_ffff);
    // Object names may be longer than label values.
    let mut name = backup.to_owned();
    name.truncate(name.floor_char_boundary(LONGEST_NAME - suffix.len()));
    name + &suffix
}

/// The name, or where it is too long its beginning and a hash of what it stands for.
pub fn shorten(full: String, identity: &str, longest: usize) -> String {
    if full.len() <= longest {
        return full;
    }
    let suffix = format!("-{:010x}", hash(identity) & 0xff_ffff_ffff);
    let head = full
        .get(..full.floor_char_boundary(longest - suffix.len()))
        .unwrap_or_default();
    format!("{}{suffix}", head.trim_end_matches(['-', '.']))
}

/// Whether a namespace can have this name (RFC 1123): names from a bucket become paths and URLs.
pub fn is_dns_label(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST).contains(&text.len())
        && text.chars().all(plain)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// FNV-1a with a final mix: stable over versions and machines, which the standard library's hasher is not. Not for secrets.
pub fn hash(text: &str) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    state ^= state >> 32;
    state = state.wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_label_leads_nowhere_else() {
        assert!(is_dns_label("kube-system") && is_dns_label("a") && is_dns_label(&"x".repeat(63)));
        for bad in [
            "", "-a", "a-", "A", "a.b", "a/b", "..", "a?x", "a%2f", "a b", "ä",
        ] {
            assert!(!is_dns_label(bad), "{bad}");
        }
        assert!(!is_dns_label(&"x".repeat(64)));
    }

    #[test]
    fn backups_are_named_by_policy_and_tick() {
        let tick: Timestamp = "2026-11-23T02:00:00Z".parse().unwrap();
        let name = |id| backup_name(&schedule_name(&id), tick);
        assert_eq!(
            name(PolicyId::cluster("everything")),
            "everything-20261123020000"
        );
        assert_eq!(
            name(PolicyId::namespaced("team-a", "db")),
            "team-a-db-20261123020000"
        );
    }

    #[test]
    fn long_names_are_hashed_and_stay_apart() {
        let long = "p".repeat(60);
        let (a, b) = (
            PolicyId::namespaced("a", &long),
            PolicyId::namespaced("a", format!("{long}x")),
        );
        let (a, b) = (schedule_name(&a), schedule_name(&b));
        assert_eq!(a.len(), 48);
        assert_ne!(a, b);
    }

    proptest! {
        #[test]
        fn names_are_label_values(namespace in "[a-z][a-z0-9-]{0,61}[a-z0-9]", name in "[a-z]([a-z0-9.-]{0,250}[a-z0-9])?") {
            let tick = Timestamp::from_second(1_800_000_000).unwrap();
            for id in [PolicyId::cluster(&name), PolicyId::namespaced(&namespace, &name)] {
                let found = backup_name(&schedule_name(&id), tick);
                prop_assert!(found.len() <= 63);
                prop_assert!(found.ends_with("-20270115080000"));
                prop_assert_eq!(&found, &backup_name(&schedule_name(&id), tick));
            }
        }
    }
}
