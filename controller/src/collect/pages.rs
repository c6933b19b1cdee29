//! Which page of a list is asked for next, and what is done when one cannot be had.

use std::time::Duration;

/// A page that fails in passing is asked for again this often.
const TRIES: u32 = 4;
/// The first pause before that; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that a server is granted.
const LONGEST: Duration = Duration::from_secs(60);

/// Why a page cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The version that the list was begun at is gone. The server may offer to go on with what is there now.
    Expired(Option<String>),
    /// It may pass; the server may say in what time.
    Passing(Option<Duration>),
    /// Asking again does not help.
    Lasting,
}

/// Where a list is.
#[derive(Debug, Default)]
pub(super) struct Pages {
    token: Option<String>,
    failures: u32,
    restarted: bool,
    whole: bool,
}

impl Pages {
    /// What the next page continues; `None` for the first.
    pub(super) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether everything is asked for at once.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    /// A page was read; whether there is another.
    pub(super) fn read(&mut self, next: Option<String>) -> bool {
        self.failures = 0;
        self.token = next;
        self.token.is_some()
    }

    /// A page was not read, or not to its end: in what time to ask for the page that is due now. `None`: not at all.
    pub(super) fn failed(&mut self, trouble: Trouble) -> Option<Duration> {
        match trouble {
            Trouble::Lasting => None,
            Trouble::Passing(asked) => {
                let pause = PAUSE * 2_u32.pow(self.failures);
                self.failures += 1;
                (self.failures <= TRIES).then(|| asked.unwrap_or(pause).clamp(pause, LONGEST))
            }
            Trouble::Expired(Some(offered)) if self.failures < TRIES => {
                self.failures += 1;
                self.token = Some(offered);
                Some(Duration::ZERO)
            }
            // From the start, at last in one page, which cannot expire.
            Trouble::Expired(_) if !self.whole => {
                self.whole = self.restarted;
                self.restarted = true;
                self.token = None;
                self.failures = 0;
                Some(Duration::ZERO)
            }
            Trouble::Expired(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_passes_is_waited_for_longer_each_time_and_not_for_ever() {
        let mut pages = Pages::default();
        assert!(pages.read(Some("a".to_owned())));
        let mut pauses = Vec::new();
        while let Some(pause) = pages.failed(Trouble::Passing(None)) {
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8]);
        assert_eq!(pages.token(), Some("a"));
        assert!(pages.read(Some("b".to_owned())));
        assert_eq!(pages.failed(Trouble::Passing(None)), Some(SECOND));
    }

    #[test]
    fn a_server_that_names_a_time_is_obeyed_within_reason() {
        for (asked, expected) in [(0, 1), (7, 7), (3600, 60)] {
            let asked = Trouble::Passing(Some(SECOND * asked));
            assert_eq!(Pages::default().failed(asked), Some(SECOND * expected));
        }
    }

    #[test]
    fn an_expired_list_goes_on_where_the_server_says() {
        let mut pages = Pages::default();
        pages.read(Some("old".to_owned()));
        let offered = Trouble::Expired(Some("new".to_owned()));
        assert_eq!(pages.failed(offered), Some(Duration::ZERO));
        assert_eq!((pages.token(), pages.whole()), (Some("new"), false));
        assert!(!pages.read(None));
    }

    #[test]
    fn an_expired_list_begins_again_and_at_last_in_one_page() {
        let mut pages = Pages::default();
        let mut ways = Vec::new();
        pages.read(Some("old".to_owned()));
        while pages.failed(Trouble::Expired(None)).is_some() {
            ways.push((pages.token().is_none(), pages.whole()));
        }
        assert_eq!(ways, [(true, false), (true, true)]);
    }

    #[test]
    fn what_lasts_is_not_asked_again() {
        assert_eq!(Pages::default().failed(Trouble::Lasting), None);
    }
}
