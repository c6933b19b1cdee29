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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::PolicyId;
    use crate::spec::PolicyParts;

    fn policy(id: PolicyId, priority: i32, created: i64, location: &str) -> Policy {
        let parts = PolicyParts {
            priority,
            storage_location: Some(location.to_owned()),
            ..PolicyParts::default()
        };
        Policy {
            uid: id.to_string(),
            created: Timestamp::from_second(created).unwrap(),
            spec: parts.check(id.kind).unwrap(),
            id,
        }
    }

    fn location(policy: &Policy) -> String {
        policy.spec.storage_location.clone().unwrap_or_default()
    }

    fn winners(policies: &[Policy]) -> Vec<String> {
        governing(policies, location)
            .into_values()
            .map(|policy| policy.id.to_string())
            .collect()
    }

    #[test]
    fn priority_then_nearest_then_oldest_then_name() {
        let cluster = |name: &str, priority, created| {
            policy(PolicyId::cluster(name), priority, created, "default")
        };
        let own = |name: &str, priority, created| {
            policy(
                PolicyId::namespaced("n", name),
                priority,
                created,
                "default",
            )
        };
        for (policies, expected) in [
            (
                [cluster("a", 0, 1), cluster("b", 1, 9)],
                "ClusterBackupPolicy/b",
            ),
            ([cluster("a", 0, 1), own("b", 0, 9)], "BackupPolicy/n/b"),
            (
                [cluster("a", 1, 9), own("b", 0, 1)],
                "ClusterBackupPolicy/a",
            ),
            (
                [cluster("a", 0, 9), cluster("b", 0, 1)],
                "ClusterBackupPolicy/b",
            ),
            (
                [cluster("b", 0, 1), cluster("a", 0, 1)],
                "ClusterBackupPolicy/a",
            ),
        ] {
            assert_eq!(winners(&policies), [expected]);
        }
    }

    #[test]
    fn each_location_has_its_own() {
        let policies = [
            policy(PolicyId::cluster("a"), 5, 1, "here"),
            policy(PolicyId::cluster("b"), 0, 1, "there"),
        ];
        assert_eq!(
            winners(&policies),
            ["ClusterBackupPolicy/a", "ClusterBackupPolicy/b"]
        );
    }

    proptest! {
        #[test]
        fn exactly_one_per_location_whatever_the_order(raw in prop::collection::vec((-1i32..2, 0i64..3, "[ab]", "[a-e]", any::<bool>()), 1..9)) {
            let mut policies: Vec<Policy> = raw
                .into_iter()
                .map(|(priority, created, place, name, own)| {
                    let id = if own { PolicyId::namespaced("n", name) } else { PolicyId::cluster(name) };
                    policy(id, priority, created, &place)
                })
                .collect();
            let forwards = winners(&policies);
            let places: std::collections::BTreeSet<String> = policies.iter().map(location).collect();
            prop_assert_eq!(forwards.len(), places.len());
            policies.reverse();
            prop_assert_eq!(forwards, winners(&policies));
        }
    }
}
