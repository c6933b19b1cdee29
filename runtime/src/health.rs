//! What the readiness probe says: the conjunction of named checks, each with its reason.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

type Checks = Arc<Mutex<BTreeMap<String, Option<String>>>>;

/// All checks of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Health {
    checks: Checks,
}

/// One named condition of readiness. Not ready until [`Check::ok`] is called; dropped checks keep their last word.
#[derive(Debug, Clone)]
pub struct Check {
    name: String,
    checks: Checks,
}

impl Health {
    /// Adds a check, not ready at first.
    pub fn check(&self, name: impl Into<String>) -> Check {
        let check = Check {
            name: name.into(),
            checks: self.checks.clone(),
        };
        check.fail("not yet");
        check
    }

    /// `Ok` when every check is; otherwise each failing check with its reason.
    pub fn ready(&self) -> Result<(), Vec<(String, String)>> {
        let failing: Vec<_> = self
            .checks
            .lock()
            .iter()
            .filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)))
            .collect();
        if failing.is_empty() {
            Ok(())
        } else {
            Err(failing)
        }
    }

    /// Every check and why it fails, if it does.
    pub fn all(&self) -> Vec<(String, Option<String>)> {
        self.checks
            .lock()
            .iter()
            .map(|(n, r)| (n.clone(), r.clone()))
            .collect()
    }
}

impl Check {
    /// The condition holds.
    pub fn ok(&self) {
        self.checks.lock().insert(self.name.clone(), None);
    }

    /// The condition does not hold, for this reason.
    pub fn fail(&self, reason: impl Into<String>) {
        self.checks
            .lock()
            .insert(self.name.clone(), Some(reason.into()));
    }

    /// Removes the check.
    pub fn remove(&self) {
        self.checks.lock().remove(&self.name);
    }
}
