//! Which nodes have an agent. One that restarts is not gone at once: every shared claim on its node would move, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

/// How long a node counts as served after its agent was last seen.
const GRACE: Duration = Duration::from_secs(120);

#[derive(Debug, Default)]
pub(super) struct Agents {
    /// Since when the agent is missing; `None` while it runs.
    nodes: BTreeMap<String, Option<Timestamp>>,
}

impl Agents {
    pub(super) fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// Takes the nodes that have a running agent; gives those that are new.
    pub(super) fn set(&mut self, running: BTreeSet<String>, now: Timestamp) -> Vec<String> {
        for (node, missing) in &mut self.nodes {
            *missing = if running.contains(node) {
                None
            } else {
                missing.or(Some(now))
            };
        }
        let new: Vec<String> = running
            .into_iter()
            .filter(|node| !self.nodes.contains_key(node))
            .collect();
        self.nodes
            .extend(new.iter().map(|node| (node.clone(), None)));
        new
    }

    /// Gives the nodes whose agent stayed away.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<String> {
        let late = |missing: &Option<Timestamp>| {
            missing.is_some_and(|since| since.checked_add(GRACE).is_ok_and(|until| until <= now))
        };
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, missing)| late(missing))
            .map(|(node, _)| node.clone())
            .collect();
        self.nodes.retain(|_, missing| !late(missing));
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_not_an_absence() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let nodes = |names: &[&str]| {
            names
                .iter()
                .map(|n| (*n).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let mut agents = Agents::default();
        assert_eq!(agents.set(nodes(&["a", "b"]), at(0)), ["a", "b"]);
        assert!(agents.set(nodes(&["a"]), at(10)).is_empty());
        assert!(agents.expire(at(100)).is_empty() && agents.has("b"));
        assert!(agents.set(nodes(&["a", "b"]), at(110)).is_empty());
        assert!(agents.expire(at(500)).is_empty());
        agents.set(nodes(&["a"]), at(600));
        assert_eq!(agents.expire(at(720)), ["b"]);
        assert!(!agents.has("b"));
    }
}
