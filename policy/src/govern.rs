//! Which policy governs a volume where several want it: per storage location exactly one, by priority, then the nearest
//! (BackupPolicy before ClusterBackupPolicy), then the oldest, then the name.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use crate::spec::{Policy, PolicyKind};

/// The better of two policies is the greater.
fn rank(policy: &Policy) -> impl Ord {
    (
        policy.spec.priority,
        policy.id.kind == PolicyKind::BackupPolicy,
        Reverse(policy.created),
        Reverse((policy.id.clone(), policy.uid.clone())),
    )
}

/// Compares two policies that want the same volume at the same location: `Greater` governs.
pub fn compare(a: &Policy, b: &Policy) -> Ordering {
    rank(a).cmp(&rank(b))
}

/// The governing policy per location among those that want a volume. `location` gives the name a policy's location resolves to
/// (the default location has one too).
pub fn governing<'p>(
    wanting: impl IntoIterator<Item = &'p Policy>,
    location: impl Fn(&Policy) -> String,
) -> BTreeMap<String, &'p Policy> {
    let mut governing: BTreeMap<String, &Policy> = BTreeMap::new();
    for policy in wanting {
        governing
            .entry(location(policy))
            .and_modify(|best| {
                if compare(policy, best).is_gt() {
                    *best = policy;
                }
            })
            .or_insert(policy);
    }
    governing
}
