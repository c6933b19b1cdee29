//! Settings of an S3 store, from Velero's location config or from restic's `s3:` URLs.

use std::time::Duration;

use aws_sdk_s3::types::{ChecksumAlgorithm, ServerSideEncryption};

use crate::location::LocationConfig;
use crate::{Error, Result};

/// Keys of a location's `config` that Velero's AWS plugin knows.
const KNOWN: [&str; 15] = [
    "region",
    "s3Url",
    "publicUrl",
    "kmsKeyId",
    "customerKeyEncryptionFile",
    "customerKeyEncryptionSecret",
    "s3ForcePathStyle",
    "signatureVersion",
    "credentialsFile",
    "profile",
    "serverSideEncryption",
    "insecureSkipTLSVerify",
    "enableSharedConfig",
    "tagging",
    "checksumAlgorithm",
];

/// An object has no more tags in S3.
const TAGS: usize = 10;

/// Whose credentials sign the requests.
#[derive(Clone)]
pub enum Credentials {
    /// The AWS SDK's default chain: environment, `AWS_SHARED_CREDENTIALS_FILE`, web identity,
    /// container and instance roles.
    Environment {
        /// The profile of the shared files; `None`: `AWS_PROFILE` or `default`.
        profile: Option<String>,
    },
    /// The content of an AWS credentials file.
    File {
        /// The file's text.
        content: String,
        /// Which profile of it.
        profile: String,
    },
    /// An access key.
    Key {
        /// Its id.
        id: String,
        /// Its secret.
        secret: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Credentials::Environment { profile } => write!(f, "Environment({profile:?})"),
            Credentials::File { profile, .. } => write!(f, "File({profile:?})"),
            Credentials::Key { .. } => write!(f, "Key(<hidden>)"),
        }
    }
}

/// How long requests may take. A request that moves `n` bytes gets `answer + n / slowest`.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To connect, with TLS.
    pub connect: Duration,
    /// For one attempt of a request without a large body; twice that for all its attempts.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// The slowest transfer that is not given up, in bytes per second.
    pub slowest: u64,
    /// Attempts for one operation.
    pub attempts: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            slowest: 128 * 1024,
            attempts: 4,
        }
    }
}

impl Timeouts {
    /// The deadline of one attempt that moves `bytes`.
    pub(super) fn attempt(&self, bytes: u64) -> Duration {
        self.answer + Duration::from_secs(bytes / self.slowest.max(1))
    }

    /// The deadline of all attempts.
    pub(super) fn operation(&self, bytes: u64) -> Duration {
        self.attempt(bytes) * 2
    }
}

/// How objects in `backups/` and `restores/` are stored. Repository data is encrypted by itself and is
/// written without any of this, as Velero's restic does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encryption {
    /// `serverSideEncryption`; `aws:kms` where a key is named.
    pub algorithm: Option<ServerSideEncryption>,
    /// `kmsKeyId`.
    pub kms_key: Option<String>,
    /// `tagging`: `k=v&k2=v2`.
    pub tagging: Option<String>,
    /// `checksumAlgorithm`.
    pub checksum: Option<ChecksumAlgorithm>,
}

/// Settings of an S3 store.
#[derive(Debug, Clone)]
pub struct S3Config {
    /// The bucket, or an `arn:aws:s3:` access point.
    pub bucket: String,
    /// Root inside the bucket, without slashes at its ends.
    pub prefix: String,
    /// The region; `None`: asked from the bucket.
    pub region: Option<String>,
    /// `http://` or `https://` URL of a server other than AWS.
    pub endpoint: Option<String>,
    /// The server's URL as users outside reach it, for presigned URLs.
    pub public_url: Option<String>,
    /// `host/bucket` rather than `bucket.host`.
    pub path_style: bool,
    /// PEM certificates that are trusted besides the system's.
    pub ca_cert: Option<Vec<u8>>,
    /// Trust every server certificate.
    pub insecure: bool,
    /// Who asks.
    pub credentials: Credentials,
    /// For `backups/` and `restores/` only.
    pub encryption: Encryption,
    /// Deadlines.
    pub timeouts: Timeouts,
}

impl S3Config {
    /// A bucket with nothing else set.
    pub fn new(bucket: impl Into<String>) -> S3Config {
        S3Config {
            bucket: bucket.into(),
            prefix: String::new(),
            region: None,
            endpoint: None,
            public_url: None,
            path_style: false,
            ca_cert: None,
            insecure: false,
            credentials: Credentials::Environment { profile: None },
            encryption: Encryption::default(),
            timeouts: Timeouts::default(),
        }
    }

    /// Reads a location's settings as Velero's AWS plugin does: the same keys, defaults and refusals.
    ///
    /// `credentialsFile` is not followed: whoever may write a location could otherwise make the
    /// controller read any file. Customer-provided keys are refused, not ignored.
    pub fn from_velero(location: LocationConfig) -> Result<S3Config> {
        if let Some(key) = location
            .config
            .keys()
            .find(|key| !KNOWN.contains(&key.as_str()))
        {
            let message = format!("unknown key; allowed: {}", KNOWN.join(", "));
            return Err(Error::config(format!("config.{key}"), message));
        }
        for key in ["customerKeyEncryptionFile", "customerKeyEncryptionSecret"] {
            if location.setting(key).is_some() {
                return Err(Error::config(
                    format!("config.{key}"),
                    "customer-provided encryption keys are not supported",
                ));
            }
        }
        if !matches!(location.setting("signatureVersion"), None | Some("1" | "4")) {
            return Err(Error::config(
                "config.signatureVersion",
                "must be \"1\" or \"4\"",
            ));
        }
        if let (None, Some(file)) = (
            &location.credentials_file,
            location.setting("credentialsFile"),
        ) && std::env::var("AWS_SHARED_CREDENTIALS_FILE").as_deref() != Ok(file)
        {
            let message = format!("{file:?} is not read; name a Secret with it in spec.credential");
            return Err(Error::config("config.credentialsFile", message));
        }
        // The SDK reads the shared files in any case; the value is only checked.
        boolean(&location, "enableSharedConfig")?;
        let owned = |name: &str| location.setting(name).map(str::to_owned);
        let encryption = Encryption {
            algorithm: algorithm(&location)?,
            kms_key: owned("kmsKeyId"),
            tagging: tagging(&location)?,
            checksum: checksum(&location)?,
        };
        let credentials = match &location.credentials_file {
            None => Credentials::Environment {
                profile: owned("profile"),
            },
            Some(content) => Credentials::File {
                content: content.clone(),
                profile: owned("profile").unwrap_or_else(|| "default".to_owned()),
            },
        };
        let config = S3Config {
            bucket: location.bucket.clone(),
            prefix: location.prefix().to_owned(),
            region: owned("region"),
            endpoint: url(&location, "s3Url")?,
            public_url: url(&location, "publicUrl")?,
            path_style: boolean(&location, "s3ForcePathStyle")?,
            insecure: boolean(&location, "insecureSkipTLSVerify")?,
            credentials,
            encryption,
            timeouts: Timeouts::default(),
            ca_cert: location.ca_cert,
        };
        config.check()?;
        Ok(config)
    }

    /// Reads restic's `s3:` repository URLs: `s3:http://host:9000/bucket/prefix`,
    /// `s3:https://host/bucket`, `s3:host/bucket/prefix`, `s3://host/bucket`. Credentials and region
    /// come from the environment (`AWS_*`).
    pub fn from_restic(url: &str) -> Result<S3Config> {
        let refuse = |message: &str| Error::config("repository", format!("{url:?}: {message}"));
        let rest = url
            .strip_prefix("s3:")
            .ok_or_else(|| refuse("does not start with s3:"))?;
        let (scheme, rest) = if let Some(rest) = rest.strip_prefix("http://") {
            ("http", rest)
        } else {
            (
                "https",
                rest.strip_prefix("https://")
                    .unwrap_or(rest)
                    .trim_start_matches('/'),
            )
        };
        let mut parts = rest.splitn(3, '/');
        let host = parts.next().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| refuse("names no host"))?;
        let bucket = parts.next().filter(|bucket| !bucket.is_empty());
        let bucket = bucket.ok_or_else(|| refuse("names no bucket"))?;
        let mut config = S3Config::new(bucket);
        config.prefix = parts
            .next()
            .unwrap_or_default()
            .trim_matches('/')
            .to_owned();
        // AWS is addressed by region through the SDK, which also knows its newer endpoints.
        if !(host.ends_with(".amazonaws.com") && scheme == "https") {
            config.endpoint = Some(format!("{scheme}://{host}"));
            config.path_style = true;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if self.bucket.is_empty() {
            return Err(Error::config("bucket", "it is empty"));
        }
        if self.bucket.contains('/') && !self.bucket.starts_with("arn:aws:s3:") {
            let message = format!(
                "{:?} contains '/'; what follows belongs into prefix",
                self.bucket
            );
            return Err(Error::config("bucket", message));
        }
        if !self.prefix.is_empty() {
            crate::key::check("prefix", &self.prefix).map_err(|error| match error {
                Error::InvalidKey { key, message, .. } => {
                    Error::config("prefix", format!("{key:?}: {message}"))
                }
                other => other,
            })?;
        }
        Ok(())
    }

    /// `s3:http://host:9000/bucket/prefix`, for messages.
    pub(super) fn location(&self) -> String {
        let host = self
            .endpoint
            .as_deref()
            .unwrap_or("s3.amazonaws.com")
            .trim_end_matches('/');
        let location = format!("s3:{host}/{}/{}", self.bucket, self.prefix);
        location.trim_end_matches('/').to_owned()
    }
}

/// Go's `strconv.ParseBool`; empty is false.
fn boolean(location: &LocationConfig, name: &str) -> Result<bool> {
    match location.config.get(name).map(String::as_str) {
        None | Some("" | "0" | "f" | "F" | "false" | "False" | "FALSE") => Ok(false),
        Some("1" | "t" | "T" | "true" | "True" | "TRUE") => Ok(true),
        Some(other) => Err(Error::config(
            format!("config.{name}"),
            format!("{other:?} is neither \"true\" nor \"false\""),
        )),
    }
}

fn url(location: &LocationConfig, name: &str) -> Result<Option<String>> {
    let Some(text) = location.setting(name) else {
        return Ok(None);
    };
    let refuse = |message: String| Error::config(format!("config.{name}"), message);
    let parsed = url::Url::parse(text).map_err(|error| refuse(format!("{text:?}: {error}")))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        // Not echoed: it may hold a password.
        return Err(refuse("must not hold a user or password".to_owned()));
    }
    if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
        return Err(refuse(format!(
            "{text:?} does not start with http:// or https://"
        )));
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

fn algorithm(location: &LocationConfig) -> Result<Option<ServerSideEncryption>> {
    if location.setting("kmsKeyId").is_some() {
        return Ok(Some(ServerSideEncryption::AwsKms));
    }
    match location.setting("serverSideEncryption") {
        None => Ok(None),
        Some("AES256") => Ok(Some(ServerSideEncryption::Aes256)),
        Some("aws:kms") => Ok(Some(ServerSideEncryption::AwsKms)),
        Some("aws:kms:dsse") => Ok(Some(ServerSideEncryption::AwsKmsDsse)),
        Some(other) => Err(Error::config(
            "config.serverSideEncryption",
            format!("{other:?}; allowed: AES256, aws:kms, aws:kms:dsse"),
        )),
    }
}

/// As S3 takes it, so that a mistake is found before the first backup.
fn tagging(location: &LocationConfig) -> Result<Option<String>> {
    let Some(text) = location.setting("tagging") else {
        return Ok(None);
    };
    let tag = |tag: &str| {
        let parts = tag.split_once('=');
        parts.is_some_and(|(key, value)| !key.is_empty() && !value.contains('='))
    };
    if text.split('&').count() > TAGS || !text.split('&').all(tag) {
        return Err(Error::config(
            "config.tagging",
            format!("{text:?}; expected up to {TAGS} tags, such as \"team=shop&tier=gold\""),
        ));
    }
    Ok(Some(text.to_owned()))
}

fn checksum(location: &LocationConfig) -> Result<Option<ChecksumAlgorithm>> {
    match location.config.get("checksumAlgorithm").map(String::as_str) {
        None | Some("CRC32") => Ok(Some(ChecksumAlgorithm::Crc32)),
        Some("") => Ok(None),
        Some("CRC32C") => Ok(Some(ChecksumAlgorithm::Crc32C)),
        Some("SHA1") => Ok(Some(ChecksumAlgorithm::Sha1)),
        Some("SHA256") => Ok(Some(ChecksumAlgorithm::Sha256)),
        Some(other) => Err(Error::config(
            "config.checksumAlgorithm",
            format!("{other:?}; allowed: CRC32, CRC32C, SHA1, SHA256 and empty for none"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(config: &[(&str, &str)]) -> LocationConfig {
        LocationConfig {
            provider: "aws".into(),
            bucket: "b".into(),
            prefix: "/p/".into(),
            config: config
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            ..Default::default()
        }
    }

    fn refusal(config: &[(&str, &str)]) -> String {
        S3Config::from_velero(location(config))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_velero_location_is_read_as_the_aws_plugin_reads_it() {
        let config = S3Config::from_velero(location(&[
            ("region", "minio"),
            ("s3Url", "http://minio:9000/"),
            ("s3ForcePathStyle", "true"),
            ("publicUrl", "https://s3.example.com"),
            ("insecureSkipTLSVerify", "false"),
        ]))
        .unwrap();
        assert_eq!(config.location(), "s3:http://minio:9000/b/p");
        assert!(config.path_style && !config.insecure);
        assert_eq!(config.public_url.as_deref(), Some("https://s3.example.com"));
        assert_eq!(config.encryption.checksum, Some(ChecksumAlgorithm::Crc32));
        let config =
            S3Config::from_velero(location(&[("kmsKeyId", "k"), ("checksumAlgorithm", "")]));
        let encryption = config.unwrap().encryption;
        assert_eq!(encryption.algorithm, Some(ServerSideEncryption::AwsKms));
        assert_eq!(encryption.checksum, None);
    }

    #[test]
    fn a_setting_that_cannot_be_is_refused_by_name() {
        assert!(refusal(&[("bucketName", "x")]).starts_with("config.bucketName: unknown key"));
        assert!(
            refusal(&[("resticRepoPrefix", "x")]).starts_with("config.resticRepoPrefix: unknown")
        );
        assert!(
            refusal(&[("s3ForcePathStyle", "yes")]).starts_with("config.s3ForcePathStyle: \"yes\"")
        );
        assert!(refusal(&[("s3Url", "minio:9000")]).starts_with("config.s3Url: "));
        assert!(refusal(&[("publicUrl", "ftp://x")]).starts_with("config.publicUrl: "));
        assert!(refusal(&[("signatureVersion", "2")]).starts_with("config.signatureVersion: "));
        assert!(refusal(&[("checksumAlgorithm", "MD5")]).starts_with("config.checksumAlgorithm: "));
        assert!(
            refusal(&[("serverSideEncryption", "x")]).starts_with("config.serverSideEncryption")
        );
        assert!(refusal(&[("customerKeyEncryptionFile", "/k")]).contains("not supported"));
        assert!(refusal(&[("tagging", "team")]).starts_with("config.tagging: \"team\""));
        assert!(refusal(&[("tagging", "a=b=c")]).starts_with("config.tagging: "));
        assert!(refusal(&[("tagging", &["a=b"; 11].join("&"))]).starts_with("config.tagging: "));
        let canary = refusal(&[("s3Url", "http://user:canary@host")]);
        assert!(!canary.contains("canary"), "{canary}");
        let mut wrong = location(&[]);
        wrong.bucket = "bucket/prefix".into();
        let error = S3Config::from_velero(wrong).unwrap_err().to_string();
        assert!(
            error.starts_with("bucket: \"bucket/prefix\" contains '/'"),
            "{error}"
        );
        let mut wrong = location(&[]);
        wrong.prefix = "../other".into();
        assert!(
            S3Config::from_velero(wrong)
                .unwrap_err()
                .to_string()
                .starts_with("prefix: ")
        );
    }

    #[test]
    fn a_file_of_credentials_is_refused_where_no_secret_takes_its_place() {
        let file = [("credentialsFile", "/etc/passwd")];
        assert!(refusal(&file).starts_with("config.credentialsFile: \"/etc/passwd\" is not read"));
        let mut with_secret = location(&file);
        with_secret.credentials_file = Some("[default]".into());
        assert!(S3Config::from_velero(with_secret).is_ok());
    }

    #[test]
    fn tags_are_taken_one_or_many() {
        for tags in ["team=shop", "team=shop&tier=", "a=1&b=2&c=3"] {
            let config = S3Config::from_velero(location(&[("tagging", tags)])).unwrap();
            assert_eq!(config.encryption.tagging.as_deref(), Some(tags));
        }
    }

    #[test]
    fn restic_urls_name_server_bucket_and_prefix() {
        for (url, location, path_style) in [
            (
                "s3:http://127.0.0.1:9000/b/p/q/",
                "s3:http://127.0.0.1:9000/b/p/q",
                true,
            ),
            ("s3:https://host/b", "s3:https://host/b", true),
            ("s3:host:443/b/p", "s3:https://host:443/b/p", true),
            ("s3://host/b", "s3:https://host/b", true),
            (
                "s3:s3-eu-1.amazonaws.com/b/p",
                "s3:s3.amazonaws.com/b/p",
                false,
            ),
        ] {
            let config = S3Config::from_restic(url).unwrap();
            assert_eq!(
                (config.location().as_str(), config.path_style),
                (location, path_style)
            );
        }
        for url in [
            "s3:",
            "s3:http://host",
            "s3:host/",
            "rest:http://host/b",
            "s3:host//b",
        ] {
            assert!(S3Config::from_restic(url).is_err(), "{url}");
        }
    }
}
