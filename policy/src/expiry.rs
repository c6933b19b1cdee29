//! When a backup whose time is over is deleted (velero-compat §5.13).

use jiff::Timestamp;

/// What is known about a backup.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// Until when it is kept.
    pub expires: Option<Timestamp>,
    /// It is not at work any more.
    pub ended: bool,
    /// Its deletion has been asked for.
    pub going: bool,
    /// Its deletion was begun, and nobody is at it any more.
    pub abandoned: bool,
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
    if facts.foreign || facts.going || !(facts.ended || facts.abandoned) {
        return Verdict::Keep;
    }
    // Of a backup that is half gone nothing is worth waiting for.
    match facts.expires {
        _ if facts.abandoned => {}
        None => return Verdict::Keep,
        Some(expires) if expires > now => return Verdict::At(expires),
        Some(_) => {}
    }
    if facts.read {
        return Verdict::Later;
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
        let now = Timestamp::from_second(1_000).unwrap();
        let over = Facts {
            expires: Some(now),
            ended: true,
            going: false,
            abandoned: false,
            foreign: false,
            read: false,
            location: Location::Writable,
        };
        let later = Timestamp::from_second(1_001).unwrap();
        let half_gone = Facts {
            ended: false,
            abandoned: true,
            expires: Some(later),
            ..over
        };
        let at = |location| Facts { location, ..over };
        for (facts, want) in [
            (over, Verdict::Delete),
            (
                Facts {
                    expires: None,
                    ..over
                },
                Verdict::Keep,
            ),
            (
                Facts {
                    expires: Some(later),
                    ..over
                },
                Verdict::At(later),
            ),
            (
                Facts {
                    ended: false,
                    ..over
                },
                Verdict::Keep,
            ),
            (
                Facts {
                    going: true,
                    ..over
                },
                Verdict::Keep,
            ),
            (
                Facts {
                    foreign: true,
                    ..over
                },
                Verdict::Keep,
            ),
            (half_gone, Verdict::Delete),
            (
                Facts {
                    going: true,
                    ..half_gone
                },
                Verdict::Keep,
            ),
            (
                Facts {
                    foreign: true,
                    ..half_gone
                },
                Verdict::Keep,
            ),
            (Facts { read: true, ..over }, Verdict::Later),
            (at(Location::ReadOnly), Verdict::Blocked("BSLReadOnly")),
            (
                at(Location::Unavailable),
                Verdict::Blocked("BSLUnavailable"),
            ),
            (at(Location::Missing), Verdict::Blocked("BSLNotFound")),
        ] {
            assert_eq!(expiry(facts, now), want, "{facts:?}");
        }
    }
}
