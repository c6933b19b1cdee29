//! Conditions between the policy room's types and the API's.

use jackline_policy::condition::{self, ConditionType, Status, Wanted};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The conditions to write, with the transition times of `previous` where the status is the same.
pub fn settle(
    wanted: impl IntoIterator<Item = Wanted>,
    previous: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let before = |kind: ConditionType| {
        let found = previous
            .iter()
            .find(|condition| condition.type_ == kind.to_string())?;
        Some((
            found.status.parse::<Status>().ok()?,
            found.last_transition_time.0,
        ))
    };
    condition::settle(wanted, before, now)
        .into_iter()
        .map(|condition| Condition {
            type_: condition.kind.to_string(),
            status: condition.status.to_string(),
            reason: condition.reason.to_string(),
            message: condition.message,
            observed_generation: generation,
            last_transition_time: Time(condition.last_transition),
        })
        .collect()
}
