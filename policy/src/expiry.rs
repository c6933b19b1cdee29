//! When a backup whose time is over is deleted (velero-compat §5.13).

use jiff::{SignedDuration, Timestamp};

/// How long after a deletion that was refused another is asked for.
const AGAIN: SignedDuration = SignedDuration::from_hours(1);

/// Whether the deletion of a backup has been asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    No,
    /// It is not done yet.
    Open,
    /// It could not be carried out; this is when the last one was asked for.
    Refused(Timestamp),
}

impl Asked {
    /// Until when none is asked for, where one was refused.
    pub fn rests(self, now: Timestamp) -> Option<Timestamp> {
        let Self::Refused(asked) = self else {
            return None;
        };
        asked.checked_add(AGAIN).ok().filter(|until| *until > now)
    }
}

/// What is known about a backup.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Until when it is kept.
    pub expires: Option<Timestamp>,
    /// It is not at work any more.
    pub ended: bool,
    /// Whether its deletion has been asked for.
    pub asked: Asked,
    /// Its deletion was begun.
    pub begun: bool,
    /// It is the only record of snapshots that cannot be deleted here, and nobody has said that they may stay behind.
    pub elsewhere: bool,
    /// It was made in another cluster, which deletes it itself.
    pub foreign: bool,
    /// A restore reads it.
    pub read: bool,
    /// Where it lies.
    pub location: Location,
}

/// The location of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    Writable,
    ReadOnly,
    Unavailable,
    Missing,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing before it changes.
    Keep,
    /// Nothing before this time.
    At(Timestamp),
    /// It would go, were it not for something that passes.
    Later,
    /// It cannot go; the word is for a label.
    Blocked(&'static str),
    /// It goes.
    Delete,
}

/// Decides about one backup.
pub fn expiry(facts: Facts, now: Timestamp) -> Verdict {
    if facts.foreign || facts.asked == Asked::Open || !(facts.ended || facts.begun) {
        return Verdict::Keep;
    }
    // Of a backup that is half gone nothing is worth waiting for.
    match facts.expires {
        _ if facts.begun => {}
        None => return Verdict::Keep,
        Some(expires) if expires > now => return Verdict::At(expires),
        Some(_) => {}
    }
    if facts.read {
        return Verdict::Later;
    }
    if facts.elsewhere {
        return Verdict::Blocked("SnapshotsOfVelero");
    }
    if let Some(until) = facts.asked.rests(now) {
        return Verdict::At(until);
    }
    match facts.location {
        Location::Writable => Verdict::Delete,
        Location::ReadOnly => Verdict::Blocked("BSLReadOnly"),
        Location::Unavailable => Verdict::Blocked("BSLUnavailable"),
        Location::Missing => Verdict::Blocked("BSLNotFound"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_goes_when_its_time_is_over_and_nothing_needs_it() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (now, later) = (at(10_000), at(10_001));
        let over = Facts {
            expires: Some(now),
            ended: true,
            asked: Asked::No,
            begun: false,
            elsewhere: false,
            foreign: false,
            read: false,
            location: Location::Writable,
        };
        let half_gone = Facts {
            ended: false,
            begun: true,
            expires: Some(later),
            ..over
        };
        let expires = |expires| Facts { expires, ..over };
        let lies = |location| Facts { location, ..over };
        let asked = |asked| Facts { asked, ..over };
        let foreign = |facts| Facts {
            foreign: true,
            ..facts
        };
        let still_open = Facts {
            asked: Asked::Open,
            ..half_gone
        };
        let refused = Facts {
            asked: Asked::Refused(now),
            ..half_gone
        };
        let unended = Facts {
            ended: false,
            ..over
        };
        let read = Facts { read: true, ..over };
        let elsewhere = Facts {
            elsewhere: true,
            ..over
        };
        for (facts, want) in [
            (over, Verdict::Delete),
            (expires(None), Verdict::Keep),
            (expires(Some(later)), Verdict::At(later)),
            (unended, Verdict::Keep),
            (foreign(over), Verdict::Keep),
            (half_gone, Verdict::Delete),
            (foreign(half_gone), Verdict::Keep),
            (still_open, Verdict::Keep),
            (refused, Verdict::At(at(13_600))),
            (asked(Asked::Open), Verdict::Keep),
            (asked(Asked::Refused(at(6_401))), Verdict::At(later)),
            (asked(Asked::Refused(at(6_400))), Verdict::Delete),
            (read, Verdict::Later),
            (elsewhere, Verdict::Blocked("SnapshotsOfVelero")),
            (lies(Location::ReadOnly), Verdict::Blocked("BSLReadOnly")),
            (
                lies(Location::Unavailable),
                Verdict::Blocked("BSLUnavailable"),
            ),
            (lies(Location::Missing), Verdict::Blocked("BSLNotFound")),
        ] {
            assert_eq!(expiry(facts, now), want, "{facts:?}");
        }
    }
}
