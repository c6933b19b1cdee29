//! An S3 server behind TLS, with a certificate that nobody knows.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::Env;

/// nginx before the S3 server of a cluster: one for the pods, and one for this host.
#[derive(Debug)]
pub struct Tls {
    fronts: Vec<Child>,
    directory: TempDir,
    /// Where pods of the cluster find it.
    pub url: String,
    /// Where this host does.
    pub host_url: String,
}

impl Tls {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn before_s3(env: &Env) -> Result<Self> {
        let inside = env.cluster.listen()?.local_addr()?;
        let outside = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut tls = Self {
            fronts: Vec::new(),
            directory: TempDir::new()?,
            url: format!("https://{inside}"),
            host_url: format!("https://{outside}"),
        };
        let names = format!("subjectAltName=IP:{},IP:{}", inside.ip(), outside.ip());
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
            .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=s3.test", "-addext", &names, "-keyout"])
            .args([tls.at("key.pem"), "-out".into(), tls.authority()])
            .output()
            .context("start openssl")?;
        ensure!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let s3 = env.cluster.s3();
        let file = tls.configure("inside", inside, &s3.endpoint)?;
        let mut nginx = env.cluster.enter(["nginx", "-c", &file]);
        tls.start(&mut nginx)?;
        let file = tls.configure("outside", outside, &s3.host_endpoint)?;
        tls.start(Command::new("nginx").args(["-c", &file]))?;
        let began = Instant::now();
        while TcpStream::connect(outside).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(10), "no nginx");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(tls)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, name: &str, address: SocketAddr, server: &str) -> Result<String> {
        let at = |what: &str| self.at(&format!("{name}-{what}")).display().to_string();
        let text = format!(
            "daemon off; worker_processes 1; pid {pid}; error_log stderr;
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
            body = at("body"),
            certificate = self.authority().display(),
            key = self.at("key.pem").display(),
        );
        fs::write(at("conf"), text)?;
        Ok(at("conf"))
    }

    fn start(&mut self, nginx: &mut Command) -> Result<()> {
        let child = nginx.stdin(Stdio::null()).spawn();
        self.fronts.push(child.context("start nginx")?);
        Ok(())
    }

    /// The file of the certificate, which is its own authority.
    pub fn authority(&self) -> PathBuf {
        self.at("certificate.pem")
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        for nginx in &mut self.fronts {
            // A master that is killed leaves its worker behind.
            let quit = Command::new("kill").arg(nginx.id().to_string()).status();
            if quit.is_err() {
                let _ = nginx.kill();
            }
            let _ = nginx.wait();
        }
    }
}
