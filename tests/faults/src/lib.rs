//! A proxy in front of an S3 server that counts requests and strikes at a chosen one: kills the client, delays, drops the
//! connection, cuts a body short, or answers 503 — before the request reaches the server, or after it took effect there and
//! before the client knows. Requests for some paths can be held, or slowed down to so many bytes per second.
//!
//! Requests pass unchanged, the `Host` header among them: S3 clients sign it, and MinIO verifies what it receives.
//! Bodies are held whole in memory. Listens on loopback only.
//!
//! ```no_run
//! # async fn example(server: std::net::SocketAddr) -> std::io::Result<()> {
//! use jackline_faults::{Fault, Plan, Proxy, When};
//!
//! let proxy = Proxy::start(server, Some(Plan::once(7, When::After, Fault::Kill))).await?;
//! let mut client = std::process::Command::new("client").arg(proxy.endpoint()).spawn()?;
//! proxy.aim(client.id());
//! client.wait()?;
//! proxy.settled().await;
//! assert!(proxy.struck().is_some());
//! # Ok(())
//! # }
//! ```

mod delay;
mod forward;
mod proxy;

use std::time::Duration;

pub use delay::DelayLine;
pub use proxy::{Hold, Proxy};

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// The server never sees the request (of a cut body: not all of it).
    Before,
    /// The server has answered; the client has not seen it.
    After,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The process that [`Proxy::aim`] named gets SIGKILL.
    Kill,
    /// Everything takes this much longer.
    Delay(Duration),
    /// The connection ends without an answer.
    Drop,
    /// The connection ends in the middle of a body: the request's before, the answer's after.
    Truncate,
    /// 503, as an S3 server that has too much to do.
    Unavailable,
}

/// Which requests are struck, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Plan {
    /// The first request that is struck; the first of all is 1.
    pub at: u64,
    /// How many requests in a row.
    pub times: u64,
    pub when: When,
    pub fault: Fault,
}

impl Plan {
    /// Strikes request `at` only.
    pub fn once(at: u64, when: When, fault: Fault) -> Self {
        Self {
            at,
            times: 1,
            when,
            fault,
        }
    }

    /// Strikes every request from `at` on: the server has gone.
    pub fn from(at: u64, when: When, fault: Fault) -> Self {
        Self {
            times: u64::MAX,
            ..Self::once(at, when, fault)
        }
    }

    fn strikes(&self, number: u64) -> bool {
        number >= self.at && number - self.at < self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_strikes_its_requests_and_no_others() {
        let once = Plan::once(3, When::Before, Fault::Drop);
        assert_eq!((1..6).filter(|n| once.strikes(*n)).count(), 1);
        assert!(once.strikes(3));
        let outage = Plan::from(3, When::Before, Fault::Drop);
        assert!(!outage.strikes(2) && outage.strikes(3) && outage.strikes(u64::MAX));
    }
}
