//! The images of the tests, built from this checkout and from Debian's packages.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{command, run};
use crate::oci::ImageSpec;

pub(crate) const PAUSE_IMAGE: &str = "docker.io/local/pause:1";
/// A shell with the usual small programs; runs `sleep infinity` unless told otherwise.
pub const BUSYBOX_IMAGE: &str = "docker.io/local/busybox:1";
/// nginx on port 80, with its access log in `/var/log/nginx`.
pub const NGINX_IMAGE: &str = "docker.io/local/nginx:1";
pub const CONTROLLER_IMAGE: &str = "docker.io/jackline/controller:dev";
pub const AGENT_IMAGE: &str = "docker.io/jackline/node-agent:dev";

/// Unprivileged, as in distroless images.
const NONROOT: &str = "65532:65532";

pub(crate) fn pause(program: &Path) -> ImageSpec {
    let mut spec = ImageSpec::new(PAUSE_IMAGE).file("/pause", program, 0o755);
    spec.entrypoint = vec!["/pause".into()];
    spec
}

/// Debian's static busybox with a link for each of its programs.
pub(crate) fn busybox() -> Result<ImageSpec> {
    let mut spec = with_shell(ImageSpec::new(BUSYBOX_IMAGE))?;
    spec.command = vec!["sleep".into(), "infinity".into()];
    Ok(spec)
}

fn with_shell(mut spec: ImageSpec) -> Result<ImageSpec> {
    let program = Path::new("/bin/busybox");
    spec = spec.file("/bin/busybox", program, 0o755);
    let applets = run(&mut command(program, ["--list"]))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        spec = spec.link(&format!("/bin/{applet}"), "busybox");
    }
    Ok(spec)
}

const NGINX_CONFIG: &str = "
worker_processes 1;
pid /tmp/nginx.pid;
error_log /dev/stderr;
events { worker_connections 256; }
http {
  access_log /var/log/nginx/access.log;
  server {
    listen 80;
    location / { return 200 \"$hostname $request_uri\\n\"; }
  }
}
";

/// Debian's nginx. Every request is answered with the pod's name and logged.
pub(crate) fn nginx() -> Result<ImageSpec> {
    let mut spec = with_shell(ImageSpec::new(NGINX_IMAGE))?
        .bytes("/etc/nginx/nginx.conf", NGINX_CONFIG, 0o644)
        .dir("/var/log/nginx", 0o755, 0)
        .dir("/var/lib/nginx", 0o755, 0)
        .program("/usr/sbin/nginx", Path::new("/usr/sbin/nginx"))?;
    spec.entrypoint = vec!["/usr/sbin/nginx".into(), "-g".into(), "daemon off;".into()];
    Ok(spec)
}

/// The files of Jackline's own programs.
#[derive(Debug, Clone)]
pub struct Programs {
    pub controller: PathBuf,
    pub node_agent: PathBuf,
    pub restore_wait: PathBuf,
}

impl Programs {
    /// Builds them with cargo, in the profile that this crate was built in.
    ///
    /// # Errors
    /// When one does not build.
    pub fn build() -> Result<Self> {
        let release = !cfg!(debug_assertions);
        let (dir, profile): (_, &[&str]) = if release {
            ("release", &["--release"])
        } else {
            ("debug", &[])
        };
        let cargo = || {
            let mut cargo = command("cargo", ["--quiet"]);
            cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
            cargo
        };
        run(cargo()
            // All of them: another selection of packages would build the dependencies with other features.
            .args(["build", "--workspace", "--bins"])
            .args(profile))?;
        // With a target of its own, so that it never takes the place of the dynamic build.
        let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        run(cargo()
            .args(["rustc", "-p", "jackline-restore-wait", "--target", &target])
            .args(profile)
            .args(["--", "-C", "target-feature=+crt-static"]))?;
        let metadata = run(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let built = metadata["target_directory"]
            .as_str()
            .context("cargo's target directory")?;
        let built = Path::new(built);
        Ok(Self {
            controller: built.join(dir).join("jackline-controller"),
            node_agent: built.join(dir).join("jackline-node-agent"),
            restore_wait: built.join(target).join(dir).join("jackline-restore-wait"),
        })
    }

    /// The two images, ready to be loaded. Debugging symbols stay behind.
    ///
    /// # Errors
    /// When a program is missing or is not what it should be.
    pub fn images(&self, scratch: &Path) -> Result<[ImageSpec; 2]> {
        let stripped = |program: &Path| -> Result<PathBuf> {
            let name = program.file_name().context("a program has a name")?;
            let to = scratch.join(name);
            fs::create_dir_all(scratch)?;
            let mut strip = command("strip", ["--strip-debug", "-o"]);
            run(strip.arg(&to).arg(program))?;
            Ok(to)
        };
        let waiter = stripped(&self.restore_wait)?;
        // ldd fails on a static program, and says so of a static one that can be loaded anywhere.
        let linked = run(&mut command("ldd", [&waiter]));
        ensure!(
            linked.is_err() || linked.is_ok_and(|said| said.contains("statically linked")),
            "jackline-restore-wait is not static"
        );
        let mut controller = with_certificates(ImageSpec::new(CONTROLLER_IMAGE))?
            .program("/usr/bin/jackline-controller", &stripped(&self.controller)?)?;
        controller.entrypoint = vec!["/usr/bin/jackline-controller".into()];
        controller.user = NONROOT.into();
        let mut agent = with_certificates(ImageSpec::new(AGENT_IMAGE))?
            .program("/usr/bin/jackline-node-agent", &stripped(&self.node_agent)?)?
            .file("/usr/bin/jackline-restore-wait", waiter, 0o755)
            .link("/jackline-restore-wait", "/usr/bin/jackline-restore-wait");
        agent.entrypoint = vec!["/usr/bin/jackline-node-agent".into()];
        Ok([controller, agent])
    }
}

fn with_certificates(spec: ImageSpec) -> Result<ImageSpec> {
    let bundle = Path::new("/etc/ssl/certs/ca-certificates.crt");
    ensure!(
        fs::metadata(bundle).is_ok_and(|meta| meta.size() > 0),
        "ca-certificates is missing"
    );
    Ok(spec.file("/etc/ssl/certs/ca-certificates.crt", bundle, 0o644))
}
