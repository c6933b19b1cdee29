//! What belongs together, as in Velero's ItemBlocks: pods that share a claim are frozen together.

use std::collections::{BTreeMap, BTreeSet};

/// Groups what shares a key, or shares one with others of its group. Takes the keys of everything; gives indices, in order within a group
/// and by the groups' first.
pub fn connected<K: Ord>(keys: &[BTreeSet<K>]) -> Vec<Vec<usize>> {
    let mut having: BTreeMap<&K, Vec<usize>> = BTreeMap::new();
    for (index, keys) in keys.iter().enumerate() {
        for key in keys {
            having.entry(key).or_default().push(index);
        }
    }
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for first in 0..keys.len() {
        if !seen.insert(first) {
            continue;
        }
        let mut group = vec![first];
        let mut next = vec![first];
        while let Some(one) = next.pop() {
            for key in keys.get(one).into_iter().flatten() {
                // Taken out, as nobody has to follow it twice.
                for other in having.remove(key).unwrap_or_default() {
                    if seen.insert(other) {
                        group.push(other);
                        next.push(other);
                    }
                }
            }
        }
        group.sort_unstable();
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(keys: &[&[u8]]) -> Vec<Vec<usize>> {
        let keys: Vec<BTreeSet<u8>> = keys
            .iter()
            .map(|keys| keys.iter().copied().collect())
            .collect();
        connected(&keys)
    }

    #[test]
    fn what_shares_a_key_is_one_group_also_by_way_of_others() {
        assert_eq!(of(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(of(&[&[], &[], &[1]]), [vec![0], vec![1], vec![2]]);
        assert_eq!(of(&[&[1], &[2], &[1, 3], &[3]]), [vec![0, 2, 3], vec![1]]);
        assert_eq!(of(&[&[1], &[2], &[3], &[1, 2, 3]]), [vec![0, 1, 2, 3]]);
    }

    proptest! {
        #[test]
        fn groups_part_everything_and_share_no_key(keys in proptest::collection::vec(proptest::collection::btree_set(0u8..12, 0..4), 0..12)) {
            let groups = connected(&keys);
            let mut all: Vec<usize> = groups.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..keys.len()).collect::<Vec<_>>());
            let of_group: Vec<BTreeSet<u8>> = groups
                .iter()
                .map(|group| group.iter().flat_map(|&one| keys[one].iter().copied()).collect())
                .collect();
            for (index, one) in of_group.iter().enumerate() {
                for other in &of_group[index + 1..] {
                    prop_assert!(one.is_disjoint(other));
                }
            }
        }
    }
}
