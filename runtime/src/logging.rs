//! Log output: one line per event on stderr, as text or JSON.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// What is logged unless asked otherwise: the libraries below say on `info` what concerns only them.
const DEFAULT_FILTER: &str = "info,aws_config=warn,aws_smithy_runtime=warn,aws_smithy_http_client=warn,aws_sdk_s3=warn,\
                              kube_client=warn,hyper=warn,hyper_util=warn,rustls=warn,tower=warn,h2=warn";

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For log collectors.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Log filter: a level, or target=level pairs
    #[arg(
        long,
        global = true,
        env = "JACKLINE_LOG_LEVEL",
        default_value = DEFAULT_FILTER,
        value_parser = filter,
        value_name = "FILTER"
    )]
    pub log_level: String,
    /// Log format
    #[arg(
        long,
        global = true,
        env = "JACKLINE_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

impl Default for LogArgs {
    fn default() -> Self {
        Self {
            log_level: DEFAULT_FILTER.to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// The filter does not parse.
#[derive(Debug, thiserror::Error)]
#[error(
    "{filter:?} is not a log filter; allowed: error, warn, info, debug, trace, off, the levels of Velero, or target=level,…"
)]
pub struct BadFilter {
    filter: String,
}

/// A filter as [`EnvFilter`] has it. Velero's levels have other names, and two that are above every one of ours.
fn filter(text: &str) -> Result<String, BadFilter> {
    let wrong = || BadFilter {
        filter: text.to_owned(),
    };
    let level = text.trim().to_ascii_lowercase();
    let filter = match level.as_str() {
        "warning" => "warn".to_owned(),
        "fatal" | "panic" => "error".to_owned(),
        "error" | "warn" | "info" | "debug" | "trace" | "off" => level,
        // One word alone would be taken as a target, and nothing else be logged.
        word if !word.contains(['=', ',']) => return Err(wrong()),
        _ => text.to_owned(),
    };
    match EnvFilter::try_new(&filter) {
        Ok(_) => Ok(filter),
        Err(_) => Err(wrong()),
    }
}

/// Installs the process-wide log output. A second call keeps the first one's output.
pub fn init(args: &LogArgs) -> Result<(), BadFilter> {
    let filter = EnvFilter::new(filter(&args.log_level)?);
    let registry = tracing_subscriber::registry().with(filter);
    // Failure means that an output is installed already (tests that run several processes' worth of code in one).
    let _ = match args.log_format {
        LogFormat::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false))
            .try_init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .with_writer(std::io::stderr)
                    .json()
                    .flatten_event(true),
            )
            .try_init(),
    };
    Ok(())
}

/// An error with all its causes in one line: `outer: inner: innermost`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Many libraries repeat the cause in their own text.
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_velero_are_understood_and_what_is_none_is_refused() {
        for (text, want) in [
            ("info", Some("info")),
            ("DEBUG", Some("debug")),
            ("warning", Some("warn")),
            ("fatal", Some("error")),
            ("panic", Some("error")),
            ("off", Some("off")),
            ("info,kube=warn", Some("info,kube=warn")),
            (DEFAULT_FILTER, Some(DEFAULT_FILTER)),
            ("jackline=loud", None),
            ("loud", None),
            ("", None),
        ] {
            assert_eq!(filter(text).ok().as_deref(), want, "{text:?}");
        }
        let args = LogArgs {
            log_level: "jackline=loud".to_owned(),
            ..LogArgs::default()
        };
        let error = init(&args).unwrap_err().to_string();
        assert!(
            error.contains("jackline=loud") && error.contains("allowed"),
            "{error}"
        );
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("opening failed")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk gone"));
        assert_eq!(chain(&error), "opening failed: disk gone");
    }
}
