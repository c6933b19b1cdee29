//! An S3 server behind TLS, with a certificate that nobody knows.

use std::fs;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::Env;

/// nginx before the S3 server of a cluster.
#[derive(Debug)]
pub struct Tls {
    nginx: Child,
    directory: TempDir,
    /// Where pods of the cluster and this host find it.
    pub url: String,
}

impl Tls {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn before_s3(env: &Env) -> Result<Self> {
        let directory = TempDir::new()?;
        let address = env.cluster.listen()?.local_addr()?;
        let at = |name: &str| directory.path().join(name).display().to_string();
        let (key, certificate) = (at("key.pem"), at("certificate.pem"));
        let names = format!("subjectAltName=IP:{}", address.ip());
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ])
            .args(["-days", "1", "-subj", "/CN=s3.test", "-addext", &names])
            .args(["-keyout", &key, "-out", &certificate])
            .output()
            .context("start openssl")?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let configuration = format!(
            "daemon off; worker_processes 1; pid {pid}; error_log {log};
             events {{}}
             http {{
               access_log off; client_max_body_size 0; client_body_temp_path {body}; proxy_temp_path {body};
               server {{
                 listen {address} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
                 location / {{
                   proxy_pass {server}; proxy_http_version 1.1; proxy_request_buffering off;
                   proxy_set_header Host $http_host; proxy_set_header Connection '';
                 }}
               }}
             }}",
            pid = at("pid"),
            log = at("log"),
            body = at("body"),
            server = env.cluster.s3().host_endpoint,
        );
        let file = directory.path().join("nginx.conf");
        fs::write(&file, configuration)?;
        let nginx = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .context("start nginx")?;
        let tls = Self {
            nginx,
            directory,
            url: format!("https://{address}"),
        };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let log = fs::read_to_string(tls.directory.path().join("log")).unwrap_or_default();
            ensure!(began.elapsed() < Duration::from_secs(10), "nginx: {log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(tls)
    }

    /// The file of the certificate, which is its own authority.
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // A master that is killed leaves its worker behind.
        let quit = Command::new("kill")
            .arg(self.nginx.id().to_string())
            .status();
        if quit.is_err() {
            let _ = self.nginx.kill();
        }
        let _ = self.nginx.wait();
    }
}
