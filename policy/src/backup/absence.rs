//! How long a volume's node is waited for.
//!
//! An agent that restarts takes its volumes up again, so nothing ends at once. The pod of an agent whose node is gone stays
//! `Running` for ever, as nobody is left to say otherwise: only the node itself tells the two apart.

use std::time::Duration;

/// How long a node may be gone, as the cluster sees it, before its volumes are given up.
pub const NODE_PATIENCE: Duration = Duration::from_secs(120);

/// The agent of a node, by its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// Running and ready.
    Ready,
    /// Running, and not ready.
    NotReady,
    /// No pod of it runs.
    Absent,
}

/// What the cluster says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// It takes pods.
    Ready,
    /// Its kubelet is silent or unwell.
    NotReady,
    /// There is no such node.
    Missing,
    /// The API server did not say.
    Unknown,
}

/// Whether the node has to be looked at.
#[must_use]
pub fn is_late(agent: Agent, away: Duration) -> bool {
    agent != Agent::Ready && away >= NODE_PATIENCE
}

/// How long a node that is well is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// While no agent runs on it.
    pub absent: Duration,
    /// While one runs that is not ready: it may have reasons of its own.
    pub unready: Duration,
}

/// Why a volume of this node is given up, when it is. `away` is how long the agent has not been ready.
#[must_use]
pub fn give_up(
    name: &str,
    agent: Agent,
    node: Node,
    away: Duration,
    patience: Patience,
) -> Option<String> {
    let minutes = |time: Duration| time.as_secs() / 60;
    let gone = is_late(agent, away);
    match (node, agent) {
        (Node::Missing, _) if gone => Some(format!(
            "node gone: node {name} is no longer in the cluster"
        )),
        (Node::NotReady, _) if gone => Some(format!(
            "node gone: node {name} is not ready and its node agent has not been for {} minutes",
            minutes(away)
        )),
        (_, Agent::Absent) if away >= patience.absent => Some(format!(
            "no node agent has been running on node {name} for {} minutes",
            minutes(patience.absent)
        )),
        (_, Agent::NotReady) if away >= patience.unready => Some(format!(
            "the node agent of node {name} has not been ready for {} minutes: look at its log",
            minutes(patience.unready)
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_gone_is_not_waited_for_and_a_restart_is() {
        let gone = "node gone: ";
        let (none, unready) = ("no node agent", "the node agent");
        let table = [
            // A restart, or the first moments of anything.
            (Agent::Absent, Node::Ready, 60, None),
            (Agent::Absent, Node::Missing, 119, None),
            (Agent::NotReady, Node::NotReady, 119, None),
            // The node is gone; its agent's pod may still be there and look as if it ran.
            (Agent::NotReady, Node::NotReady, 120, Some(gone)),
            (Agent::NotReady, Node::Missing, 120, Some(gone)),
            (Agent::Absent, Node::NotReady, 120, Some(gone)),
            (Agent::Absent, Node::Missing, 120, Some(gone)),
            // The node is well.
            (Agent::Absent, Node::Ready, 599, None),
            (Agent::Absent, Node::Ready, 600, Some(none)),
            (Agent::NotReady, Node::Ready, 3599, None),
            (Agent::NotReady, Node::Ready, 3600, Some(unready)),
            // Nobody knows.
            (Agent::NotReady, Node::Unknown, 3599, None),
            (Agent::NotReady, Node::Unknown, 3600, Some(unready)),
            (Agent::Absent, Node::Unknown, 599, None),
            (Agent::Absent, Node::Unknown, 600, Some(none)),
            // All is well.
            (Agent::Ready, Node::Ready, 0, None),
            (Agent::Ready, Node::NotReady, 6000, None),
        ];
        for (agent, node, away, expected) in table {
            let patience = Patience {
                absent: Duration::from_secs(600),
                unready: Duration::from_secs(3600),
            };
            let why = give_up("n", agent, node, Duration::from_secs(away), patience);
            let holds = match (&why, expected) {
                (Some(why), Some(start)) => why.starts_with(start),
                (None, None) => true,
                _ => false,
            };
            assert!(holds, "{agent:?} {node:?} {away:?}: {why:?}");
        }
    }
}
