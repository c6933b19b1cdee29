//! The S3 server of a cluster: one MinIO on the node's address.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetentionMode,
    ObjectLockRule,
};

use crate::daemon::{Daemon, Daemons};
use crate::network::NODE_ADDRESS;
use crate::place::Place;

pub(crate) const PORT: u16 = 9000;
pub(crate) const NAME: &str = "minio";
const ACCESS_KEY: &str = "jackline";
const SECRET_KEY: &str = "jackline-test-secret";
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How to reach the object storage, and the few things tests do with it directly.
#[derive(Debug, Clone)]
pub struct S3 {
    /// For pods and everything else inside the cluster's network.
    pub endpoint: String,
    /// For programs on this machine.
    pub host_endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    client: Client,
}

/// An object of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// Of its content, as the server has it.
    pub etag: String,
}

impl S3 {
    pub(crate) fn at(host_port: u16) -> Self {
        let host_endpoint = format!("http://127.0.0.1:{host_port}");
        let region = "us-east-1".to_owned();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&host_endpoint)
            .force_path_style(true)
            .region(Region::new(region.clone()))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"))
            .build();
        Self {
            endpoint: format!("http://{NODE_ADDRESS}:{PORT}"),
            host_endpoint,
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            region,
            client: Client::from_conf(config),
        }
    }

    /// The server, for whatever has no helper here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The keys as an AWS credentials file, as a BackupStorageLocation's Secret holds them.
    pub fn credentials_file(&self) -> String {
        format!(
            "[default]\naws_access_key_id={}\naws_secret_access_key={}\n",
            self.access_key, self.secret_key
        )
    }

    /// What restic and other command lines read, for programs on this machine.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_DEFAULT_REGION", self.region.clone()),
        ]
    }

    /// Makes a bucket; one that is there is fine.
    pub async fn make_bucket(&self, bucket: &str) -> Result<()> {
        match self.client.create_bucket().bucket(bucket).send().await {
            Ok(_) => Ok(()),
            Err(error) => {
                let error = error.into_service_error();
                if error.is_bucket_already_owned_by_you() {
                    return Ok(());
                }
                Err(error).with_context(|| format!("make bucket {bucket}"))
            }
        }
    }

    /// [`make_bucket`](Self::make_bucket) with versions and object lock: nothing can be removed for good within a day.
    pub async fn make_locked_bucket(&self, bucket: &str) -> Result<()> {
        let made = self.client.create_bucket().bucket(bucket);
        made.object_lock_enabled_for_bucket(true).send().await?;
        let retention = DefaultRetention::builder()
            .mode(ObjectLockRetentionMode::Compliance)
            .days(1)
            .build();
        let lock = ObjectLockConfiguration::builder()
            .object_lock_enabled(ObjectLockEnabled::Enabled)
            .rule(
                ObjectLockRule::builder()
                    .default_retention(retention)
                    .build(),
            )
            .build();
        let put = self.client.put_object_lock_configuration().bucket(bucket);
        put.object_lock_configuration(lock).send().await?;
        Ok(())
    }

    /// The keys of all versions under a prefix, each as often as it has versions.
    pub async fn versions(&self, bucket: &str, prefix: &str) -> Result<Vec<String>> {
        let versions = self.client.list_object_versions().bucket(bucket);
        let answer = versions.prefix(prefix).send().await?;
        let keys = answer
            .versions()
            .iter()
            .map(|version| version.key().unwrap_or_default());
        Ok(keys.map(str::to_owned).collect())
    }

    /// All objects under a prefix, sorted by key.
    pub async fn list(&self, bucket: &str, prefix: &str) -> Result<Vec<Object>> {
        let mut pages = self
            .client
            .list_objects_v2()
            .bucket(bucket)
            .prefix(prefix)
            .into_paginator()
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.with_context(|| format!("list {bucket}/{prefix}"))?;
            found.extend(page.contents().iter().map(|object| {
                Object {
                    key: object.key().unwrap_or_default().to_owned(),
                    etag: object.e_tag().unwrap_or_default().to_owned(),
                    size: object
                        .size()
                        .and_then(|size| u64::try_from(size).ok())
                        .unwrap_or(0),
                }
            }));
        }
        found.sort();
        Ok(found)
    }

    /// The sum of the sizes of all objects under a prefix.
    pub async fn size(&self, bucket: &str, prefix: &str) -> Result<u64> {
        Ok(self
            .list(bucket, prefix)
            .await?
            .iter()
            .map(|object| object.size)
            .sum())
    }

    pub async fn get(&self, bucket: &str, key: &str) -> Result<Vec<u8>> {
        let answer = self
            .client
            .get_object()
            .bucket(bucket)
            .key(key)
            .send()
            .await;
        let answer = answer.with_context(|| format!("get {bucket}/{key}"))?;
        Ok(answer.body.collect().await?.to_vec())
    }

    pub async fn put(&self, bucket: &str, key: &str, body: Vec<u8>) -> Result<()> {
        let request = self.client.put_object().bucket(bucket).key(key);
        let answer = request.body(ByteStream::from(body)).send().await;
        answer
            .map(drop)
            .with_context(|| format!("put {bucket}/{key}"))
    }

    pub async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        let answer = self
            .client
            .delete_object()
            .bucket(bucket)
            .key(key)
            .send()
            .await;
        answer
            .map(drop)
            .with_context(|| format!("delete {bucket}/{key}"))
    }

    /// Puts every file below a directory into a bucket, under its path relative to the directory.
    pub async fn upload_tree(&self, bucket: &str, root: &Path) -> Result<()> {
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in
                std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?
            {
                let path = entry?.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                let key = path
                    .strip_prefix(root)?
                    .to_str()
                    .context("a path is not UTF-8")?;
                self.put(bucket, key, std::fs::read(&path)?).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn wait_ready(&self, daemons: &Daemons) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        while let Err(error) = self.client.list_buckets().send().await {
            daemons.ensure_running(&[NAME, "forward-s3"])?;
            if Instant::now() > deadline {
                let error = error.into_service_error();
                bail!(
                    "MinIO does not answer: {error}\n{}",
                    daemons.last_words(NAME)
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

pub(crate) fn start(place: &Place, daemons: &Daemons, tool: &Path) -> Result<()> {
    let data = place.path("s3");
    std::fs::create_dir_all(&data)?;
    daemons.start(
        Daemon::new(NAME, tool)
            .args(["server".into(), "--quiet".into(), data])
            .args([
                format!("--address={NODE_ADDRESS}:{PORT}"),
                "--console-address=127.0.0.1:9001".into(),
            ])
            .environments(server_environment()),
    )
}

/// How the server is told its keys, and to keep to itself.
pub(crate) fn server_environment() -> [(&'static str, &'static str); 4] {
    [
        ("MINIO_ROOT_USER", ACCESS_KEY),
        ("MINIO_ROOT_PASSWORD", SECRET_KEY),
        ("MINIO_BROWSER", "off"),
        ("MINIO_UPDATE", "off"),
    ]
}
