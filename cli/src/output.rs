//! What goes to standard output, and progress on standard error.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jackline_repository::{FileProblem, Progress};
use serde_json::{Value, json};

/// Prints text. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// One JSON document on a line.
pub(crate) fn print_json(value: &Value) -> std::io::Result<()> {
    print(&format!("{value}\n"))
}

/// A message beside the result.
pub(crate) fn note(text: &str) {
    // Whoever closed standard error does not want it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What went wrong with single files, one line for each, as restic says it.
pub(crate) fn problems(problems: &[FileProblem], during: &str, json: bool) {
    for FileProblem { path, message } in problems {
        if json {
            let line = json!({
                "message_type": "error", "error": {"message": message},
                "during": during, "item": path,
            });
            note(&line.to_string());
        } else {
            note(&format!("{path}: {message}"));
        }
    }
}

const BYTES: &str =
    "{prefix}  {bar:30}  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {elapsed}";
const FILES: &str = "{prefix}  {bar:30}  {pos} of {len}  {elapsed}";

/// A bar on standard error, when that is a terminal and people are reading.
pub(crate) struct Bar {
    bar: ProgressBar,
    counts_files: bool,
}

impl Bar {
    pub(crate) fn new(what: &'static str, json: bool) -> Bar {
        Self::with(what, json, false)
    }

    /// Shows files, or what the operation counts as such, instead of bytes.
    pub(crate) fn counting(what: &'static str, json: bool) -> Bar {
        Self::with(what, json, true)
    }

    fn with(what: &'static str, json: bool, counts_files: bool) -> Bar {
        let shown = !json && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template(if counts_files { FILES } else { BYTES }) {
            bar.set_style(style);
        }
        bar.set_prefix(what);
        if shown {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Bar { bar, counts_files }
    }

    fn shown(&self, bytes: u64, files: u64) -> u64 {
        if self.counts_files { files } else { bytes }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn total(&self, bytes: u64, files: u64) {
        self.bar.set_length(self.shown(bytes, files));
    }

    fn advance(&self, bytes: u64, files: u64) {
        self.bar.inc(self.shown(bytes, files));
    }
}
