//! From the SDK's errors to ours.

use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::Error;

/// Says what failed in our classes. `after` is the deadline that a timeout exceeded.
pub(super) fn classify<E>(
    location: &str,
    key: &str,
    after: Duration,
    error: &SdkError<E, HttpResponse>,
) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let (location, key) = (location.to_owned(), key.to_owned());
    match error {
        SdkError::TimeoutError(_) => Error::Timeout {
            location,
            key,
            after,
        },
        SdkError::DispatchFailure(failure) => {
            if let Some(reason) = missing_credentials(error) {
                return Error::Denied {
                    location,
                    key,
                    message: reason,
                };
            }
            let message = text(error);
            if failure.is_timeout() {
                Error::Timeout {
                    location,
                    key,
                    after,
                }
            } else if failure.is_user() {
                Error::Other {
                    location,
                    key,
                    message,
                }
            } else {
                Error::Unreachable {
                    location,
                    key,
                    message,
                }
            }
        }
        SdkError::ResponseError(_) => match status(error) {
            Some(500..) => Error::Busy {
                location,
                key,
                message: text(error),
            },
            Some(200..300) => Error::Unreachable {
                location,
                key,
                message: text(error),
            },
            _ => Error::Other {
                location,
                key,
                message: text(error),
            },
        },
        SdkError::ServiceError(service) => service_error(
            location,
            key,
            service.err(),
            status(error).unwrap_or_default(),
        ),
        other => match missing_credentials(other) {
            Some(message) => Error::Denied {
                location,
                key,
                message,
            },
            None => Error::Other {
                location,
                key,
                message: text(other),
            },
        },
    }
}

fn service_error<E>(location: String, key: String, error: &E, status: u16) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let code = error.code().unwrap_or_default();
    let message = match (code, error.message().unwrap_or_default()) {
        ("", "") => format!("HTTP status {status}"),
        (code, "") => code.to_owned(),
        ("", message) => message.to_owned(),
        (code, message) => format!("{code}: {message}"),
    };
    match (code, status) {
        ("NoSuchBucket", _) => Error::NoBucket { location },
        ("NoSuchKey" | "NotFound", _) | ("", 404) => Error::NotFound { location, key },
        ("PreconditionFailed", _) | ("", 412) => Error::AlreadyExists { location, key },
        ("RequestTimeTooSkewed", _) | (_, 401 | 403) => Error::Denied {
            location,
            key,
            message,
        },
        ("SlowDown" | "Throttling" | "RequestTimeout" | "ConditionalRequestConflict", _)
        | (_, 429 | 500..) => Error::Busy {
            location,
            key,
            message,
        },
        _ => Error::Other {
            location,
            key,
            message,
        },
    }
}

/// The status code of the answer, if there was one.
pub(super) fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error
        .raw_response()
        .map(|response| response.status().as_u16())
}

fn missing_credentials(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(this) = cause {
        if this.downcast_ref::<CredentialsError>().is_some() {
            return Some(format!("no usable credentials: {}", text(this)));
        }
        cause = this.source();
    }
    None
}

/// The cause chain in one line.
pub(super) fn text(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(this) = cause {
        let next = this.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = this.source();
    }
    text
}
