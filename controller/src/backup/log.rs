//! The log of one backup, as it ends up in the bucket, and the warnings and errors in it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;

/// Warnings or errors, as `<name>-results.gz` has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Messages {
    /// Those about no namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    velero: Vec<String>,
    /// Those about a namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    namespaces: BTreeMap<String, Vec<String>>,
}

impl Messages {
    fn add(&mut self, namespace: Option<&str>, text: String) {
        match namespace {
            Some(namespace) => self
                .namespaces
                .entry(namespace.to_owned())
                .or_default()
                .push(text),
            None => self.velero.push(text),
        }
    }
}

/// Warnings and errors of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Results {
    /// What went wrong.
    pub errors: Messages,
    /// What somebody should look at.
    pub warnings: Messages,
}

struct Inner {
    /// Until the log is finished.
    writer: Option<GzEncoder<File>>,
    failed: Option<io::Error>,
    results: Results,
    warnings: usize,
    errors: usize,
    last_error: Option<String>,
}

/// The log of a backup. Lines have logrus's text form, which `velero backup logs` and its users know.
pub struct BackupLog {
    backup: String,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for BackupLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupLog")
            .field("backup", &self.backup)
            .finish_non_exhaustive()
    }
}

impl BackupLog {
    /// A log in a file without a name.
    ///
    /// # Errors
    /// When there is no room for one.
    pub fn new(backup: String, directory: &Path) -> io::Result<Self> {
        let writer = GzEncoder::new(tempfile::tempfile_in(directory)?, Compression::fast());
        let inner = Inner {
            writer: Some(writer),
            failed: None,
            results: Results::default(),
            warnings: 0,
            errors: 0,
            last_error: None,
        };
        Ok(Self {
            backup,
            inner: Mutex::new(inner),
        })
    }

    /// Something worth knowing.
    pub fn info(&self, message: &str, fields: &[(&str, &str)]) {
        tracing::debug!(backup = self.backup, "{message} {}", plain(fields));
        self.write("info", message, fields);
    }

    /// Something that somebody should look at.
    pub fn warning(&self, message: &str, fields: &[(&str, &str)]) {
        tracing::warn!(backup = self.backup, "{message} {}", plain(fields));
        self.write("warning", message, fields);
        let mut inner = self.inner.lock();
        inner.warnings += 1;
        inner
            .results
            .warnings
            .add(namespace(fields), entry(message, fields));
    }

    /// Something that the backup lacks.
    pub fn error(&self, message: &str, fields: &[(&str, &str)]) {
        tracing::warn!(
            backup = self.backup,
            error = true,
            "{message} {}",
            plain(fields)
        );
        self.write("error", message, fields);
        let mut inner = self.inner.lock();
        inner.errors += 1;
        inner
            .results
            .errors
            .add(namespace(fields), entry(message, fields));
        inner.last_error = Some(message.to_owned());
    }

    fn write(&self, level: &str, message: &str, fields: &[(&str, &str)]) {
        let line = line(Timestamp::now(), level, message, &self.backup, fields);
        let mut inner = self.inner.lock();
        let Some(writer) = &mut inner.writer else {
            return;
        };
        if let Err(error) = writer.write_all(line.as_bytes()) {
            inner.failed.get_or_insert(error);
        }
    }

    /// Number of warnings and errors so far.
    pub fn counts(&self) -> (usize, usize) {
        let inner = self.inner.lock();
        (inner.warnings, inner.errors)
    }

    /// The warnings and errors so far.
    pub fn results(&self) -> Results {
        self.inner.lock().results.clone()
    }

    /// The last error, for an event.
    pub fn last_error(&self) -> Option<String> {
        self.inner.lock().last_error.clone()
    }

    /// The compressed log; what comes later is not in it.
    ///
    /// # Errors
    /// The first failed write.
    pub fn finish(&self) -> io::Result<File> {
        let mut inner = self.inner.lock();
        if let Some(error) = inner.failed.take() {
            return Err(error);
        }
        let writer = inner.writer.take();
        writer
            .ok_or_else(|| io::Error::other("the log was finished before"))?
            .finish()
    }
}

fn plain(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    fields.join(" ")
}

fn namespace<'a>(fields: &[(&str, &'a str)]) -> Option<&'a str> {
    fields
        .iter()
        .find(|(key, value)| *key == "namespace" && !value.is_empty())
        .map(|(_, value)| *value)
}

/// The text of a warning or error, with Velero's separators.
fn entry(message: &str, fields: &[(&str, &str)]) -> String {
    let get = |name: &str| {
        fields
            .iter()
            .find(|(key, value)| *key == name && !value.is_empty())
            .map(|(_, value)| *value)
    };
    let mut text = String::new();
    for (name, value) in [
        ("resource", get("resource")),
        ("name", get("name")),
        ("message", Some(message)),
        ("error", get("error")),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(" {name}: /{value}"));
        }
    }
    text
}

/// A line as logrus writes it: time, level and message, then the other fields by name.
fn line(
    time: Timestamp,
    level: &str,
    message: &str,
    backup: &str,
    fields: &[(&str, &str)],
) -> String {
    let mut fields: Vec<(&str, &str)> = fields.to_vec();
    fields.push(("backup", backup));
    fields.sort_unstable();
    let mut line = format!(
        "time={} level={level} msg={}",
        quoted(&seconds(time)),
        quoted(message)
    );
    for (key, value) in fields {
        line.push_str(&format!(" {key}={}", quote(value)));
    }
    line.push('\n');
    line
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Quoted only where needed, as logrus does it.
fn quote(value: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if value.chars().all(safe) {
        value.to_owned()
    } else {
        quoted(value)
    }
}

fn quoted(value: &str) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    #[test]
    fn lines_look_like_velero_s() {
        let time: Timestamp = "2026-11-22T14:16:10.5Z".parse().unwrap();
        let fields = [
            ("resource", "pods"),
            ("namespace", "shop"),
            ("progress", ""),
        ];
        assert_eq!(
            line(time, "info", "Retrieved 1 items", "velero/first", &fields),
            "time=\"2026-11-22T14:16:10Z\" level=info msg=\"Retrieved 1 items\" backup=velero/first namespace=shop progress= resource=pods\n"
        );
    }

    #[test]
    fn warnings_and_errors_are_counted_and_kept() {
        let log = BackupLog::new("velero/b".to_owned(), &std::env::temp_dir()).unwrap();
        log.info("fine", &[]);
        log.warning("odd", &[("namespace", "shop"), ("name", "db-0")]);
        log.error("bad", &[("resource", "pods"), ("error", "no \"way\"")]);
        assert_eq!(log.counts(), (1, 1));
        let results = serde_json::to_value(log.results()).unwrap();
        assert_eq!(
            results,
            serde_json::json!({
                "errors": {"velero": [" resource: /pods message: /bad error: /no \"way\""]},
                "warnings": {"namespaces": {"shop": [" name: /db-0 message: /odd"]}},
            })
        );
        let mut file = log.finish().unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        assert!(
            text.lines().count() == 3 && text.contains(r#"error="no \"way\"""#),
            "{text}"
        );
    }
}
