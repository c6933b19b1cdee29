//! The two pod annotations: what they should say, and what has to be done for it.
//!
//! `backup.velero.io/backup-volumes` lists the elected volumes for opt-in backups; `backup.velero.io/backup-volumes-excludes` lists,
//! for opt-out backups, every eligible volume that is not elected. A person's value is never overwritten: where it does what is wanted,
//! all is well, and only what it leaves out is a conflict.

use crate::facts::Annotation;

/// One volume of a pod, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeState<'a> {
    pub name: &'a str,
    /// It could be backed up from this pod.
    pub eligible: bool,
    /// A policy that enforces governs it, and this pod carries it.
    pub elected: bool,
}

/// Which backups there are in the pod's namespace, among policies that enforce.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Styles {
    pub opt_in: bool,
    pub opt_out: bool,
}

/// What the annotations should say; `None` = they should not be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub backup_volumes: Option<String>,
    pub backup_volumes_excludes: Option<String>,
}

/// The desired values. A pod that is not running gets none: a finished Job's annotation would only make backups fail.
pub fn desired(running: bool, styles: Styles, volumes: &[VolumeState<'_>]) -> Desired {
    if !running {
        return Desired::default();
    }
    let list = |wanted: bool, of: &dyn Fn(&VolumeState<'_>) -> bool| {
        if !wanted {
            return None;
        }
        let mut names: Vec<&str> = volumes
            .iter()
            .filter(|volume| of(volume))
            .map(|volume| volume.name)
            .collect();
        names.sort_unstable();
        (!names.is_empty()).then(|| names.join(","))
    };
    Desired {
        backup_volumes: list(styles.opt_in, &|volume| volume.elected),
        backup_volumes_excludes: list(styles.opt_out, &|volume| volume.eligible && !volume.elected),
    }
}

/// What one key needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing: it is right, or a person's value does what is wanted.
    Keep,
    /// Apply the desired value.
    Write,
    /// We hold it and it should not be there (any more).
    Release,
}

/// What the `backup-volumes` key needs, given what it says.
pub fn change(observed: &Annotation, desired: Option<&str>) -> Change {
    match desired {
        None if observed.ours => Change::Release,
        None => Change::Keep,
        Some(desired) if observed.value.as_deref() == Some(desired) => Change::Keep,
        Some(_) if observed.is_users() => Change::Keep,
        Some(_) => Change::Write,
    }
}

/// Whether a person's annotation keeps a volume of this pod out of an opt-in backup that wants it.
pub fn refuses(backup_volumes: &Annotation, volume: &str) -> bool {
    backup_volumes.is_users() && !backup_volumes.lists(volume)
}

/// The body of the apply for a pod: the values that we hold afterwards. Both keys travel together, because what an apply leaves out
/// is released. `None` = nothing has to be sent.
pub fn apply(
    backup_volumes: &Annotation,
    backup_volumes_excludes: &Annotation,
    desired: &Desired,
) -> Option<Desired> {
    let keys = [
        (backup_volumes, desired.backup_volumes.as_deref()),
        (
            backup_volumes_excludes,
            desired.backup_volumes_excludes.as_deref(),
        ),
    ];
    let changes = keys.map(|(observed, desired)| change(observed, desired));
    if changes == [Change::Keep, Change::Keep] {
        return None;
    }
    let held = |at: usize| {
        let (observed, desired) = keys.get(at)?;
        match changes.get(at)? {
            Change::Write => desired.map(str::to_owned),
            Change::Keep if observed.ours => observed.value.as_deref().map(str::to_owned),
            Change::Keep | Change::Release => None,
        }
    };
    Some(Desired {
        backup_volumes: held(0),
        backup_volumes_excludes: held(1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn annotation(value: Option<&str>, ours: bool, others: bool) -> Annotation {
        Annotation {
            value: value.map(Into::into),
            ours,
            others,
        }
    }

    fn volume(name: &str, eligible: bool, elected: bool) -> VolumeState<'_> {
        VolumeState {
            name,
            eligible,
            elected,
        }
    }

    #[test]
    fn both_keys_say_what_their_kind_of_backup_needs() {
        let volumes = [
            volume("logs", true, true),
            volume("data", true, true),
            volume("cache", true, false),
            volume("block", false, false),
        ];
        let both = Styles {
            opt_in: true,
            opt_out: true,
        };
        let found = desired(true, both, &volumes);
        assert_eq!(found.backup_volumes.as_deref(), Some("data,logs"));
        assert_eq!(found.backup_volumes_excludes.as_deref(), Some("cache"));
        let opt_in = Styles {
            opt_in: true,
            opt_out: false,
        };
        assert_eq!(
            desired(true, opt_in, &volumes).backup_volumes_excludes,
            None
        );
        assert_eq!(
            desired(true, opt_in, &volumes[2..]),
            Desired::default(),
            "an empty list is no annotation"
        );
        assert_eq!(
            desired(false, both, &volumes),
            Desired::default(),
            "only running pods"
        );
    }

    #[test]
    fn a_key_changes_only_where_it_is_ours_and_differs() {
        let cases = [
            (
                annotation(None, false, false),
                Some("a"),
                Change::Write,
                "absent",
            ),
            (
                annotation(Some("a"), true, false),
                Some("a"),
                Change::Keep,
                "right already",
            ),
            (
                annotation(Some("b"), true, false),
                Some("a"),
                Change::Write,
                "ours, outdated",
            ),
            (
                annotation(Some("a"), true, false),
                None,
                Change::Release,
                "the policy is gone",
            ),
            (
                annotation(Some("a"), false, true),
                Some("a"),
                Change::Keep,
                "a person's, the same",
            ),
            (
                annotation(Some("b"), false, true),
                Some("a"),
                Change::Keep,
                "a person's",
            ),
            (
                annotation(Some("b"), false, false),
                Some("a"),
                Change::Keep,
                "nobody's, so a person's",
            ),
            (
                annotation(Some("a"), false, true),
                None,
                Change::Keep,
                "a person's stays",
            ),
            (
                annotation(Some("a"), true, true),
                None,
                Change::Release,
                "our share of a common value",
            ),
            (
                annotation(Some("b"), true, true),
                Some("a"),
                Change::Keep,
                "a common value is the person's too",
            ),
            (
                annotation(None, false, false),
                None,
                Change::Keep,
                "nothing wanted",
            ),
        ];
        for (observed, desired, expected, why) in cases {
            assert_eq!(change(&observed, desired), expected, "{why}");
        }
    }

    #[test]
    fn an_apply_holds_on_to_the_other_key() {
        let ours = annotation(Some("data"), true, false);
        let wanted = Desired {
            backup_volumes: Some("data".into()),
            backup_volumes_excludes: Some("cache".into()),
        };
        let sent = apply(&ours, &Annotation::default(), &wanted).unwrap();
        assert_eq!(sent, wanted, "leaving backup-volumes out would release it");
        let users = annotation(Some("x"), false, true);
        let sent = apply(&users, &Annotation::default(), &wanted).unwrap();
        assert_eq!(
            sent.backup_volumes, None,
            "a person's key is not ours to send"
        );
    }

    #[test]
    fn a_persons_value_conflicts_only_in_what_it_leaves_out() {
        let users = annotation(Some("data,logs"), false, true);
        assert!(!refuses(&users, "data"));
        assert!(refuses(&users, "db"));
        assert!(
            refuses(&annotation(Some("data, db"), false, true), "db"),
            "Velero does not trim"
        );
        assert!(
            !refuses(&annotation(Some("data"), true, false), "db"),
            "our own is rewritten"
        );
        assert!(!refuses(&Annotation::default(), "db"));
    }

    fn observed() -> impl Strategy<Value = Annotation> {
        (prop::option::of("[a-c]"), any::<bool>(), any::<bool>()).prop_map(
            |(value, ours, others)| {
                // An absent key has no owner.
                let there = value.is_some();
                annotation(value.as_deref(), ours && there, others && there)
            },
        )
    }

    proptest! {
        // After an apply has taken effect, nothing is left to do: a quiet cluster sees no writes.
        #[test]
        fn one_apply_settles(
            first in observed(), second in observed(),
            want_first in prop::option::of("[a-c]"), want_second in prop::option::of("[a-c]"),
        ) {
            let desired = Desired { backup_volumes: want_first, backup_volumes_excludes: want_second };
            if let Some(sent) = apply(&first, &second, &desired) {
                let after = |observed: &Annotation, sent: Option<&str>| match sent {
                    Some(value) => annotation(Some(value), true, observed.others),
                    None if observed.ours && !observed.others => Annotation::default(),
                    None => annotation(observed.value.as_deref(), false, observed.others),
                };
                let first_after = after(&first, sent.backup_volumes.as_deref());
                let second_after = after(&second, sent.backup_volumes_excludes.as_deref());
                prop_assert_eq!(apply(&first_after, &second_after, &desired), None);
                for (before, after) in [(&first, &first_after), (&second, &second_after)] {
                    if before.is_users() {
                        prop_assert_eq!(&before.value, &after.value, "a person's value stays");
                    }
                }
            }
        }
    }
}
