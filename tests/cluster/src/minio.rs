//! The S3 server alone, on loopback, for tests that need no cluster.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::s3::{self, S3};
use crate::tools;

const READY_DEADLINE: Duration = Duration::from_secs(60);

/// A MinIO that ends with this value.
#[derive(Debug)]
pub struct Minio {
    process: Child,
    /// Where it listens.
    pub address: SocketAddr,
    /// Keys, and a client.
    pub s3: S3,
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Minio {
    /// Starts a server on a free port that keeps its data below `directory`, and waits until it answers. Builds the
    /// program when it is not there.
    pub async fn start(directory: &Path) -> Result<Self> {
        let program = tokio::task::spawn_blocking(tools::minio).await??;
        // Between here and the server's start somebody else may take the port; then the server ends and says so.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let process = Command::new(program)
            .args(["server", "--quiet", "--address", &address.to_string()])
            .args(["--console-address", "127.0.0.1:0"])
            .arg(directory.join("minio"))
            .envs(s3::server_environment())
            .env("HOME", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start MinIO")?;
        let mut minio = Self {
            process,
            address,
            s3: S3::at(address.port()),
        };
        let started = Instant::now();
        while minio.s3.client().list_buckets().send().await.is_err() {
            let ended = minio.process.try_wait()?;
            ensure!(ended.is_none(), "MinIO ended: {ended:?}");
            ensure!(started.elapsed() < READY_DEADLINE, "MinIO does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(minio)
    }
}
