//! The Go programs that the cluster runs: built from the modules beside this crate, once, and kept outside the checkout in
//! `$JACKLINE_CACHE/tools` (default `~/.cache/jackline/tools`) under a name that holds the hash of what went in.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::command::{command, run};

/// One program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    name: &'static str,
    /// Its module's directory, below this crate.
    module: &'static str,
    /// A directory of the module (`./name`), or a package of a module that it requires.
    package: &'static str,
    flags: &'static str,
    /// How long a build with empty caches takes on two cores.
    cold: &'static str,
}

const STRIP: &str = "-s -w";

pub(crate) const KUBE: Tool = Tool {
    name: "kube",
    module: "go",
    package: "./kube",
    flags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
            -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
    cold: "6 minutes",
};
pub(crate) const VOLUMES: Tool = Tool {
    name: "volumes",
    module: "go",
    package: "./volumes",
    flags: STRIP,
    cold: "1 minute",
};
pub(crate) const PAUSE: Tool = Tool {
    name: "pause",
    module: "go",
    package: "./pause",
    flags: STRIP,
    cold: "10 seconds",
};
pub(crate) const FORWARD: Tool = Tool {
    name: "forward",
    module: "go",
    package: "./forward",
    flags: STRIP,
    cold: "10 seconds",
};
pub(crate) const MINIO: Tool = Tool {
    name: "minio",
    module: "minio",
    package: ".",
    flags: STRIP,
    cold: "4 minutes",
};

const VELERO: Tool = Tool {
    name: "velero",
    module: "velero-client",
    package: "github.com/vmware-tanzu/velero/cmd/velero",
    flags: "-s -w -X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=v1.18.0",
    cold: "5 minutes",
};

/// The last release of Velero whose node agent's restic nobody calls deprecated.
const VELERO_1_14: Tool = Tool {
    name: "velero-1.14",
    module: "velero-server",
    package: "github.com/vmware-tanzu/velero/cmd/velero",
    flags: "-s -w -X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=v1.14.1",
    cold: "5 minutes",
};
const VELERO_RESTORE_HELPER: Tool = Tool {
    name: "velero-restore-helper",
    module: "velero-server",
    package: "github.com/vmware-tanzu/velero/cmd/velero-restore-helper",
    flags: STRIP,
    cold: "10 seconds",
};
/// Of another release, so in a module of its own; the server talks to it through a pipe.
const VELERO_PLUGIN_FOR_AWS: Tool = Tool {
    name: "velero-plugin-for-aws",
    module: "velero-plugin",
    package: "github.com/vmware-tanzu/velero-plugin-for-aws/velero-plugin-for-aws",
    flags: STRIP,
    cold: "2 minutes",
};

pub(crate) const ALL: [Tool; 5] = [PAUSE, FORWARD, KUBE, VOLUMES, MINIO];

/// Where things live that are expensive to make and do not belong into the checkout.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("JACKLINE_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither JACKLINE_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/jackline"))
}

/// The program's file, built first when it is not there.
pub(crate) fn ready(tool: Tool) -> Result<PathBuf> {
    let dir = cache()?.join("tools");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join(tool.module);
    let name = format!("{}-{}", tool.name, fingerprint(&module, tool)?);
    let binary = dir.join(&name);
    if binary.exists() {
        return Ok(binary);
    }
    // One build at a time on this machine: each uses all cores.
    let lock = File::create(dir.join("lock")).context("create the lock of the tools")?;
    lock.lock().context("wait for another build of the tools")?;
    if binary.exists() {
        return Ok(binary);
    }
    eprintln!(
        "building {} (about {} when nothing is cached)",
        tool.name, tool.cold
    );
    let started = Instant::now();
    let unfinished = dir.join(format!("{name}.unfinished"));
    let built = Command::new("nice")
        .args(["go", "build", "-trimpath", "-ldflags", tool.flags, "-o"])
        .args([unfinished.as_path(), Path::new(tool.package)])
        .current_dir(&module)
        .stdin(Stdio::null())
        .output()
        .context("start go, which builds the tools that the tests run on")?;
    if !built.status.success() {
        bail!(
            "go build of {}: {}",
            tool.name,
            String::from_utf8_lossy(&built.stderr).trim()
        );
    }
    fs::rename(&unfinished, &binary)?;
    eprintln!("built {} in {} s", tool.name, started.elapsed().as_secs());
    Ok(binary)
}

/// Builds all tools that are not there yet.
pub fn build_all() -> Result<Vec<PathBuf>> {
    ALL.into_iter().map(ready).collect()
}

/// The S3 server's program, for tests that need no cluster; built when it is not there.
pub fn minio() -> Result<PathBuf> {
    ready(MINIO)
}

/// Velero's own client, unmodified; built when it is not there.
///
/// # Errors
/// When it cannot be built.
pub fn velero() -> Result<PathBuf> {
    ready(VELERO)
}

/// Velero 1.14.1, unmodified.
#[derive(Debug, Clone)]
pub struct VeleroRelease {
    /// Client, server and node agent.
    pub velero: PathBuf,
    pub restore_helper: PathBuf,
    pub plugin_for_aws: PathBuf,
}

/// The programs of Velero 1.14.1; built where they are not there.
///
/// # Errors
/// When one cannot be built.
pub fn velero_1_14() -> Result<VeleroRelease> {
    Ok(VeleroRelease {
        velero: ready(VELERO_1_14)?,
        restore_helper: ready(VELERO_RESTORE_HELPER)?,
        plugin_for_aws: ready(VELERO_PLUGIN_FOR_AWS)?,
    })
}

/// The source of a release of Velero, such as `v1.14.1`.
///
/// # Errors
/// When it cannot be had.
pub fn velero_source(version: &str) -> Result<PathBuf> {
    let module = format!("github.com/vmware-tanzu/velero@{version}");
    let said = run(&mut command("go", ["mod", "download", "-json", &module]))?;
    let said: serde_json::Value = serde_json::from_str(&said)?;
    let directory = said["Dir"].as_str();
    Ok(directory
        .with_context(|| format!("{module}: {said}"))?
        .into())
}

/// A hash over everything that decides what the binary does.
fn fingerprint(module: &Path, tool: Tool) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(go_version()?);
    hash.update(tool.flags);
    for file in ["go.mod", "go.sum"] {
        hash.update(fs::read(module.join(file)).with_context(|| format!("read {file}"))?);
    }
    if !tool.package.starts_with('.') {
        // go.sum says what its source is.
        hash.update(tool.package);
        return Ok(hex::encode(hash.finalize())[..16].to_owned());
    }
    let package = module.join(tool.package);
    let mut sources: Vec<PathBuf> = fs::read_dir(&package)
        .with_context(|| format!("read {}", package.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "go"));
    sources.sort();
    for source in sources {
        hash.update(source.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(fs::read(source)?);
    }
    Ok(hex::encode(hash.finalize())[..16].to_owned())
}

fn go_version() -> Result<String> {
    run(&mut command("go", ["env", "GOVERSION", "GOARCH"]))
        .context("the cluster's programs are written in Go: install Go 1.26")
}
