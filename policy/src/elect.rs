//! Shared claims: of the pods that mount a claim exactly one carries it.

use std::cmp::Reverse;

use jiff::Timestamp;

/// A pod that a policy wants the claim from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    pub uid: &'a str,
    pub created: Timestamp,
    /// Running, not terminating, and mounting the claim in a regular container. Only such a pod can be elected.
    pub able: bool,
    /// It carries the claim already.
    pub incumbent: bool,
    /// A person's annotation on it leaves the claim out, and is not overwritten.
    pub refused: bool,
    /// A ready node agent runs on its node.
    pub agent: bool,
    /// It belongs to a Job: it will end by itself.
    pub job: bool,
}

/// The elected pod's position. What can carry the claim now ranks before what carried it until now, so a pod whose agent is gone
/// hands over; among equals the incumbent stays, whatever comes and goes beside it.
pub fn elect(candidates: &[Candidate<'_>]) -> Option<usize> {
    let rank = |candidate: &Candidate<'_>| {
        (
            !candidate.refused,
            candidate.agent,
            !candidate.job,
            candidate.incumbent,
            Reverse(candidate.created),
        )
    };
    candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.able)
        .max_by(|(_, a), (_, b)| rank(a).cmp(&rank(b)).then_with(|| b.uid.cmp(a.uid)))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(uid: &str, created: i64) -> Candidate<'_> {
        Candidate {
            uid,
            created: Timestamp::from_second(created).unwrap(),
            able: true,
            incumbent: false,
            refused: false,
            agent: true,
            job: false,
        }
    }

    fn elected<'a>(candidates: &[Candidate<'a>]) -> Option<&'a str> {
        elect(candidates).map(|at| candidates[at].uid)
    }

    #[test]
    fn ranks_in_order() {
        let (a, b) = (pod("a", 2), pod("b", 1));
        assert_eq!(elected(&[a, b]), Some("b"), "the oldest");
        assert_eq!(
            elected(&[
                a,
                Candidate {
                    created: a.created,
                    ..b
                }
            ]),
            Some("a"),
            "the smaller uid"
        );
        assert_eq!(
            elected(&[
                Candidate {
                    incumbent: true,
                    ..a
                },
                b
            ]),
            Some("a"),
            "sticky"
        );
        assert_eq!(
            elected(&[a, Candidate { job: true, ..b }]),
            Some("a"),
            "a Job's pod comes last"
        );
        assert_eq!(
            elected(&[a, Candidate { agent: false, ..b }]),
            Some("a"),
            "a ready agent"
        );
        assert_eq!(
            elected(&[Candidate {
                job: true,
                agent: false,
                ..a
            }]),
            Some("a"),
            "no disqualification"
        );
        let gone = Candidate {
            able: false,
            incumbent: true,
            ..a
        };
        assert_eq!(
            elected(&[gone, b]),
            Some("b"),
            "an incumbent that cannot is replaced"
        );
        assert_eq!(elected(&[Candidate { refused: true, ..b }, a]), Some("a"));
        assert_eq!(elected(&[gone]), None);
        assert_eq!(elected(&[]), None);
    }

    fn candidates() -> impl Strategy<Value = Vec<(u8, i64, [bool; 5])>> {
        prop::collection::vec((any::<u8>(), 0i64..5, any::<[bool; 5]>()), 0..12)
    }

    fn build<'a>(names: &'a [String], raw: &[(u8, i64, [bool; 5])]) -> Vec<Candidate<'a>> {
        let mut all: Vec<Candidate<'a>> = names
            .iter()
            .zip(raw)
            .map(
                |(uid, (_, created, [able, incumbent, refused, agent, job]))| Candidate {
                    uid,
                    created: Timestamp::from_second(*created).unwrap(),
                    able: *able,
                    incumbent: *incumbent,
                    refused: *refused,
                    agent: *agent,
                    job: *job,
                },
            )
            .collect();
        all.sort_by_key(|candidate| candidate.uid);
        all.dedup_by_key(|candidate| candidate.uid);
        all
    }

    proptest! {
        #[test]
        fn exactly_one_wins_where_one_is_able(raw in candidates()) {
            let names: Vec<String> = raw.iter().map(|(uid, ..)| uid.to_string()).collect();
            let all = build(&names, &raw);
            let winner = elect(&all);
            prop_assert_eq!(winner.is_some(), all.iter().any(|c| c.able));
            prop_assert!(winner.is_none_or(|at| all[at].able));
        }

        #[test]
        fn order_does_not_matter(raw in candidates()) {
            let names: Vec<String> = raw.iter().map(|(uid, ..)| uid.to_string()).collect();
            let all = build(&names, &raw);
            let mut reversed = all.clone();
            reversed.reverse();
            prop_assert_eq!(elected(&all), elected(&reversed));
        }

        // Once elected, a pod stays elected while others come, go, start and end, as long as none is better placed than it.
        #[test]
        fn no_flapping(raw in candidates(), later in candidates()) {
            let names: Vec<String> = raw.iter().map(|(uid, ..)| uid.to_string()).collect();
            let all = build(&names, &raw);
            if let Some(at) = elect(&all) {
                let winner = Candidate { incumbent: true, ..all[at] };
                let names: Vec<String> = later.iter().map(|(uid, ..)| format!("later-{uid}")).collect();
                let mut next: Vec<Candidate<'_>> = build(&names, &later)
                    .into_iter()
                    .map(|other| Candidate { incumbent: false, ..other })
                    .filter(|other| {
                        (!other.refused, other.agent, !other.job) <= (!winner.refused, winner.agent, !winner.job)
                    })
                    .collect();
                next.push(winner);
                prop_assert_eq!(elected(&next), Some(winner.uid));
            }
        }
    }
}
