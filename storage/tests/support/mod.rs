//! A MinIO on loopback, and bytes that do not compress.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Region};
use jackline_storage::s3::{Credentials, S3Config};
use tempfile::TempDir;

pub const ACCESS: &str = "jackline";
pub const SECRET: &str = "canary-secret-of-the-tests";

/// A MinIO server that ends with this value.
#[derive(Debug)]
pub struct Minio {
    process: Child,
    directory: TempDir,
    pub endpoint: String,
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Minio {
    pub async fn start() -> Minio {
        Minio::start_with(|_, _| ()).await
    }

    /// `prepare` may put certificates into the configuration directory and change the command.
    pub async fn start_with(prepare: impl FnOnce(&std::path::Path, &mut Command)) -> Minio {
        let program = tokio::task::spawn_blocking(jackline_test_cluster::minio)
            .await
            .unwrap()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config");
        std::fs::create_dir_all(config.join("certs")).unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command
            .args([
                "server",
                "--quiet",
                "--address",
                &format!("127.0.0.1:{port}"),
            ])
            .args(["--console-address", "127.0.0.1:0", "--certs-dir"])
            .args([config.join("certs"), directory.path().join("data")])
            .envs([("MINIO_ROOT_USER", ACCESS), ("MINIO_ROOT_PASSWORD", SECRET)])
            .envs([("MINIO_BROWSER", "off"), ("MINIO_UPDATE", "off")])
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        prepare(&config.join("certs"), &mut command);
        let scheme = if config.join("certs/public.crt").exists() {
            "https"
        } else {
            "http"
        };
        let minio = Minio {
            process: command.spawn().unwrap(),
            directory,
            endpoint: format!("{scheme}://127.0.0.1:{port}"),
        };
        let started = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_err()
        {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "MinIO does not listen"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        minio
    }

    /// A store's settings; the bucket is made.
    pub async fn config(&self, bucket: &str) -> S3Config {
        self.make_bucket(bucket).await;
        self.config_without_bucket(bucket)
    }

    pub fn config_without_bucket(&self, bucket: &str) -> S3Config {
        let mut config = S3Config::new(bucket);
        config.endpoint = Some(self.endpoint.clone());
        config.path_style = true;
        config.region = Some("us-east-1".into());
        config.credentials = Credentials::Key {
            id: ACCESS.into(),
            secret: SECRET.into(),
        };
        config
    }

    pub fn credentials_file(&self) -> String {
        format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n")
    }

    /// Until the server is ready; its port opens a little earlier.
    async fn make_bucket(&self, bucket: &str) {
        // A directory below the data is a bucket; no client of our own is needed, nor one that trusts
        // the certificate.
        let started = Instant::now();
        let data = self.directory.path().join("data/.minio.sys/format.json");
        while !data.exists() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "MinIO has not formatted its disk"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::fs::create_dir_all(self.directory.path().join("data").join(bucket)).unwrap();
        if self.endpoint.starts_with("https") {
            tokio::time::sleep(Duration::from_secs(1)).await;
            return;
        }
        let client = aws_sdk_s3::Client::from_conf(
            aws_sdk_s3::Config::builder()
                .behavior_version(BehaviorVersion::latest())
                .endpoint_url(&self.endpoint)
                .force_path_style(true)
                .region(Region::new("us-east-1"))
                .credentials_provider(aws_sdk_s3::config::Credentials::new(
                    ACCESS, SECRET, None, None, "test",
                ))
                .build(),
        );
        while let Err(error) = client.head_bucket().bucket(bucket).send().await {
            assert!(started.elapsed() < Duration::from_secs(60), "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Bytes that neither repeat nor compress.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
