//! From a Velero storage location to a store.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::metrics::Metered;
use crate::s3::{S3Config, S3Store};
use crate::{Error, ObjectStore, Result, layout};

/// What a BackupStorageLocation says, with the contents of the Secrets it names.
#[derive(Clone, Default)]
pub struct LocationConfig {
    /// `spec.provider`; without a slash `velero.io/` is meant.
    pub provider: String,
    /// `spec.objectStorage.bucket`.
    pub bucket: String,
    /// `spec.objectStorage.prefix`; slashes at both ends are ignored.
    pub prefix: String,
    /// `spec.config`.
    pub config: BTreeMap<String, String>,
    /// `spec.objectStorage.caCert`, decoded: PEM certificates that are trusted besides the system's.
    pub ca_cert: Option<Vec<u8>>,
    /// Content of an AWS credentials file (the value of the Secret that `spec.credential` names).
    /// `None`: the environment's own credentials, `AWS_SHARED_CREDENTIALS_FILE` first of all.
    pub credentials_file: Option<String>,
}

impl std::fmt::Debug for LocationConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocationConfig")
            .field("provider", &self.provider)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("config", &self.config)
            .field(
                "credentials_file",
                &self.credentials_file.as_ref().map(|_| "<hidden>"),
            )
            .finish_non_exhaustive()
    }
}

impl LocationConfig {
    /// The prefix without slashes at its ends.
    pub fn prefix(&self) -> &str {
        self.prefix.trim_matches('/')
    }

    /// A value of `spec.config`; an empty one counts as absent.
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.config
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// S3 is what `aws` speaks, and every unknown provider that has an `s3Url`.
    fn is_s3(&self) -> bool {
        match self
            .provider
            .strip_prefix("velero.io/")
            .unwrap_or(&self.provider)
        {
            "aws" => true,
            "azure" | "gcp" => false,
            _ => self.setting("s3Url").is_some(),
        }
    }
}

/// Opens the store of a location, rooted at its bucket and prefix, with its operations counted in
/// [`crate::metrics`]. Nothing is read from the bucket: use [`crate::layout::validate`] for that.
pub async fn open_location(location: LocationConfig) -> Result<Arc<dyn ObjectStore>> {
    if !location.is_s3() {
        return Err(Error::config(
            "provider",
            format!(
                "{:?} is not supported; supported: \"aws\" (S3)",
                location.provider
            ),
        ));
    }
    let store = S3Store::connect(S3Config::from_velero(location)?).await?;
    Ok(Arc::new(Metered::new(Arc::new(store))))
}

/// The repository of `namespace` in a location as restic's `--repo` names it, formed as Velero does,
/// for `BackupRepository.spec.resticIdentifier`.
///
/// Without `s3Url` and `region` the global endpoint is named, which restic resolves by itself.
pub fn restic_identifier(location: &LocationConfig, namespace: &str) -> Result<String> {
    if let Some(prefix) = location.setting("resticRepoPrefix") {
        return Ok(format!("{}/{namespace}", prefix.trim_end_matches('/')));
    }
    let directory = match location.prefix() {
        "" => layout::restic_directory(namespace),
        prefix => format!("{prefix}/{}", layout::restic_directory(namespace)),
    };
    let bucket = &location.bucket;
    match location
        .provider
        .strip_prefix("velero.io/")
        .unwrap_or(&location.provider)
    {
        _ if location.is_s3() => {
            let host = match (location.setting("s3Url"), location.setting("region")) {
                (Some(url), _) => url.strip_suffix('/').unwrap_or(url).to_owned(),
                (None, Some(region)) => format!("s3-{region}.amazonaws.com"),
                (None, None) => "s3.amazonaws.com".to_owned(),
            };
            Ok(format!("s3:{host}/{bucket}/{directory}"))
        }
        "azure" => Ok(format!("azure:{bucket}:/{directory}")),
        "gcp" => Ok(format!("gs:{bucket}:/{directory}")),
        other => Err(Error::config(
            "provider",
            format!("invalid backend type {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(provider: &str, prefix: &str, config: &[(&str, &str)]) -> LocationConfig {
        let config = config
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        LocationConfig {
            provider: provider.into(),
            bucket: "b".into(),
            prefix: prefix.into(),
            config,
            ..Default::default()
        }
    }

    #[test]
    fn restic_identifiers_are_those_that_velero_forms() {
        let minio = [("s3Url", "http://minio:9000/"), ("region", "minio")];
        for (location, want) in [
            (
                location("aws", "", &minio),
                "s3:http://minio:9000/b/restic/ns",
            ),
            (
                location("velero.io/aws", "/p/q/", &minio),
                "s3:http://minio:9000/b/p/q/restic/ns",
            ),
            (
                location("aws", "p", &[("region", "eu-1")]),
                "s3:s3-eu-1.amazonaws.com/b/p/restic/ns",
            ),
            (location("aws", "", &[]), "s3:s3.amazonaws.com/b/restic/ns"),
            (
                location("example.com/x", "", &minio),
                "s3:http://minio:9000/b/restic/ns",
            ),
            (location("azure", "p", &[]), "azure:b:/p/restic/ns"),
            (location("velero.io/gcp", "", &[]), "gs:b:/restic/ns"),
            (
                location("aws", "p", &[("resticRepoPrefix", "sftp:x:/y/")]),
                "sftp:x:/y/ns",
            ),
        ] {
            assert_eq!(restic_identifier(&location, "ns").unwrap(), want);
        }
        let error = restic_identifier(&location("example.com/x", "", &[]), "ns").unwrap_err();
        assert!(
            error.to_string().contains("invalid backend type"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_provider_without_s3_is_refused_by_name() {
        let error = open_location(location("azure", "", &[])).await.unwrap_err();
        assert_eq!(error.reason(), "InvalidConfig");
        assert!(error.to_string().contains("azure"), "{error}");
    }

    #[test]
    fn debug_output_hides_the_credentials() {
        let mut location = location("aws", "", &[]);
        location.credentials_file = Some("aws_secret_access_key=canary".into());
        assert!(!format!("{location:?}").contains("canary"));
    }
}
