//! Exit codes, the same as restic's, and the message that goes with one.

use std::fmt::Display;
use std::process::ExitCode;

use jackline_repository::Error;

/// For `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    failed
  2    the command line cannot be understood
  3    done, but incomplete: some files could not be read or written
  10   there is no repository
  11   the repository is locked by somebody else
  12   wrong password
  130  cancelled by a signal";

pub(crate) const INCOMPLETE: u8 = 3;

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    pub(crate) fn failed(message: impl Display) -> Exit {
        Exit {
            code: 1,
            message: message.to_string(),
        }
    }

    pub(crate) fn cancelled(message: impl Display) -> Exit {
        Exit {
            code: 130,
            message: message.to_string(),
        }
    }

    pub(crate) fn incomplete(message: impl Display) -> Exit {
        Exit {
            code: INCOMPLETE,
            message: message.to_string(),
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        self.code.into()
    }

    /// One line for standard error.
    pub(crate) fn last_words(&self, json: bool) -> String {
        if json {
            let Exit { code, message } = self;
            let error = serde_json::json!({
                "message_type": "exit_error", "code": code, "message": message,
            });
            return error.to_string();
        }
        format!("jackline: {}", self.message)
    }
}

impl From<Error> for Exit {
    fn from(error: Error) -> Exit {
        let code = match &error {
            Error::NotFound { .. } => 10,
            Error::Locked { .. } | Error::LockLost { .. } => 11,
            Error::WrongPassword { .. } => 12,
            Error::Cancelled => 130,
            _ => 1,
        };
        Exit {
            code,
            message: chain(&error),
        }
    }
}

impl From<jackline_storage::Error> for Exit {
    fn from(error: jackline_storage::Error) -> Exit {
        Exit::failed(error)
    }
}

impl From<std::io::Error> for Exit {
    fn from(error: std::io::Error) -> Exit {
        Exit::failed(error)
    }
}

/// The error and its causes in one line, without repetitions.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(this) = cause {
        let next = this.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = this.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_restic() {
        let location = || "/r".to_owned();
        for (error, code) in [
            (
                Error::NotFound {
                    location: location(),
                },
                10,
            ),
            (
                Error::WrongPassword {
                    location: location(),
                },
                12,
            ),
            (
                Error::LockLost {
                    reason: String::new(),
                },
                11,
            ),
            (Error::Cancelled, 130),
            (Error::Invalid("x".into()), 1),
        ] {
            assert_eq!(Exit::from(error).code, code);
        }
    }

    #[test]
    fn scripts_get_the_last_words_as_json() {
        let words = Exit::from(Error::NotFound {
            location: "/r".into(),
        })
        .last_words(true);
        let words: serde_json::Value = serde_json::from_str(&words).unwrap();
        assert_eq!(words["message_type"], "exit_error");
        assert_eq!(words["code"], 10);
    }
}
