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

/// How much text of one namespace is kept besides the log, in bytes: one that fails at everything neither fills the memory nor hides what
/// the others have to say.
const OF_ONE: usize = 256 << 10;
/// The same, of all together.
const OF_ALL: usize = 4 << 20;
/// Longest text of one warning or error, in bytes.
const LONGEST: usize = 16 << 10;

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

/// Texts, and how many more there were.
#[derive(Debug, Default)]
struct Texts {
    texts: Vec<String>,
    size: usize,
    more: usize,
}

/// What is kept of warnings or errors.
#[derive(Debug, Default)]
struct Kept {
    /// By namespace; the empty one has those about none.
    of: BTreeMap<String, Texts>,
    size: usize,
    count: usize,
}

impl Kept {
    fn add(&mut self, namespace: &str, mut text: String) {
        self.count += 1;
        text.truncate(text.floor_char_boundary(LONGEST));
        let kept = self.of.entry(namespace.to_owned()).or_default();
        if kept.size + text.len() > OF_ONE || self.size + text.len() > OF_ALL {
            kept.more += 1;
            return;
        }
        kept.size += text.len();
        self.size += text.len();
        kept.texts.push(text);
    }

    fn messages(&self) -> Messages {
        let texts = |kept: &Texts| {
            let more = (kept.more > 0).then(|| {
                let more = format!("and {} more, which the log of the backup has", kept.more);
                entry(&more, &[])
            });
            kept.texts.iter().cloned().chain(more).collect()
        };
        let mut namespaces: BTreeMap<String, Vec<String>> = self
            .of
            .iter()
            .map(|(namespace, kept)| (namespace.clone(), texts(kept)))
            .collect();
        Messages {
            velero: namespaces.remove("").unwrap_or_default(),
            namespaces,
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
    warnings: Kept,
    errors: Kept,
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
            warnings: Kept::default(),
            errors: Kept::default(),
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
        inner
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
        inner.errors.add(namespace(fields), entry(message, fields));
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
        (inner.warnings.count, inner.errors.count)
    }

    /// The warnings and errors so far, but for what is too much to keep.
    pub fn results(&self) -> Results {
        let inner = self.inner.lock();
        Results {
            errors: inner.errors.messages(),
            warnings: inner.warnings.messages(),
        }
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

/// The namespace that something is about; empty where it is about none.
fn namespace<'a>(fields: &[(&str, &'a str)]) -> &'a str {
    let mut fields = fields.iter();
    let found = fields.find(|(key, _)| *key == "namespace");
    found.map_or("", |(_, value)| *value)
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
        let text = read(&log);
        assert!(
            text.lines().count() == 3 && text.contains(r#"error="no \"way\"""#),
            "{text}"
        );
    }

    fn read(log: &BackupLog) -> String {
        let mut file = log.finish().unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn what_is_too_much_to_keep_is_counted_and_in_the_log() {
        let log = BackupLog::new("velero/b".to_owned(), &std::env::temp_dir()).unwrap();
        let long = "\u{e9}".repeat(LONGEST);
        for _ in 0..20 {
            log.warning(&long, &[("namespace", "loud")]);
        }
        log.warning("odd", &[("namespace", "quiet")]);
        for n in 0..30 {
            for _ in 0..16 {
                log.error(&long, &[("namespace", &format!("n{n}"))]);
            }
        }
        log.error("bad", &[]);
        assert_eq!(log.counts(), (21, 30 * 16 + 1));
        let Results { errors, warnings } = log.results();
        let loud = &warnings.namespaces["loud"];
        assert!(loud.iter().all(|text| text.len() <= LONGEST), "{}", loud[0]);
        let (kept, more) = (loud.len() - 1, &loud[loud.len() - 1]);
        let told = format!(
            " message: /and {} more, which the log of the backup has",
            20 - kept
        );
        assert_eq!(*more, told);
        assert_eq!(warnings.namespaces["quiet"], [" message: /odd"]);
        let size: usize = errors.namespaces.values().flatten().map(String::len).sum();
        assert!(size < OF_ALL + 64 * 1024, "{size}");
        // Small ones find room where large ones do not.
        assert_eq!(errors.velero, [" message: /bad"]);
        assert_eq!(errors.namespaces.len(), 30);
        assert_eq!(read(&log).lines().count(), 21 + 30 * 16 + 1);
    }
}
