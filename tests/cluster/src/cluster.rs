//! A running cluster and what tests do with it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use rustix::process::{Pid, Signal, kill_process};

use crate::cgroup::Cgroups;
use crate::command::{command, run};
use crate::daemon::Daemons;
use crate::images::Programs;
use crate::machine::Machine;
use crate::oci::ImageSpec;
use crate::place::Place;
use crate::s3::{self, S3};
use crate::site::Site;
use crate::state::State;
use crate::up::{self, Options, Stage};
use crate::{mounts, network, node, plane, tools};

/// A cluster. Dropping it takes it down, unless it was attached to or is to be kept.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    cgroups: Cgroups,
    daemons: Daemons,
    state: State,
    client: ClientBox,
    s3: Option<S3>,
    stages: Vec<Stage>,
    /// Held as long as this program owns the cluster.
    lock: Option<File>,
    keep: bool,
}

struct ClientBox(Client);

impl std::fmt::Debug for ClientBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Cluster {
    /// Brings a cluster up. What an earlier run left in the same directory is removed first.
    ///
    /// # Errors
    /// When a package, tool or daemon cannot be had or does not start; the message ends with the daemon's last words.
    pub async fn up(options: Options) -> Result<Self> {
        let dir = options.dir.clone();
        let up = up::up(options).await;
        up.with_context(|| format!("bring up the cluster in {}", dir.display()))
    }

    /// A cluster that another program brought up, or that was kept.
    ///
    /// # Errors
    /// When none runs in that directory.
    pub async fn attach(dir: &Path) -> Result<Self> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        ensure!(dir.exists(), "no cluster runs in {}", dir.display());
        let place = Place::at(dir)?;
        let state = State::load(&place)?;
        let cgroups = Cgroups::of(&place.id)?;
        let daemons = Daemons::of(&place, &cgroups);
        ensure!(
            daemons.pid("kube-apiserver").is_some(),
            "no cluster runs in {}",
            dir.display()
        );
        let client = client_of(&place.path("kubeconfig")).await?;
        plane::wait_ready(&client, &daemons).await?;
        let mut cluster = Self::new(place, cgroups, daemons, state, client, Vec::new());
        cluster.keep = true;
        Ok(cluster)
    }

    pub(crate) fn new(
        place: Place,
        cgroups: Cgroups,
        daemons: Daemons,
        state: State,
        client: Client,
        stages: Vec<Stage>,
    ) -> Self {
        let s3 = state.s3_port.map(S3::at);
        let client = ClientBox(client);
        Self {
            place,
            cgroups,
            daemons,
            state,
            client,
            s3,
            stages,
            lock: None,
            keep: false,
        }
    }

    pub(crate) fn owned(mut self, lock: File, keep: bool) -> Self {
        self.lock = Some(lock);
        self.keep = keep;
        self
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn daemons(&self) -> &Daemons {
        &self.daemons
    }

    /// The object storage, when the cluster has one.
    pub fn object_storage(&self) -> Option<&S3> {
        self.s3.as_ref()
    }

    /// How long the stages of bringing it up took; nothing for a cluster attached to.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The cluster's directory.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// The name of the cluster's control groups, unique on this machine.
    pub fn id(&self) -> &str {
        &self.place.id
    }

    /// An administrator's kubeconfig for programs on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.place.path("kubeconfig")
    }

    /// An administrator's kubeconfig for programs started with [`Self::enter`].
    pub fn inside_kubeconfig(&self) -> PathBuf {
        self.place.path("pki/admin.kubeconfig")
    }

    /// The API server's address for programs on this machine.
    pub fn api_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.state.api_port)
    }

    /// An administrator's client.
    pub fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// The first node's name.
    pub fn node(&self) -> &str {
        self.state.nodes.first().map_or("", String::as_str)
    }

    /// The nodes' names.
    pub fn nodes(&self) -> &[String] {
        &self.state.nodes
    }

    /// One of the nodes, to be stopped and started.
    ///
    /// # Errors
    /// When the cluster has none of that name.
    pub fn machine(&self, name: &str) -> Result<Machine<'_>> {
        let site = self.sites().into_iter().find(|site| site.name == name);
        let site = site.with_context(|| format!("no node {name}: {:?}", self.state.nodes))?;
        Ok(Machine {
            cluster: self,
            site,
        })
    }

    pub(crate) fn sites(&self) -> Vec<Site> {
        Site::all(&self.place, &self.state.nodes)
    }

    pub(crate) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// The directory that pods' volumes are mounted below, for a node agent's host path: the same on every node. On this machine
    /// it is the first node's; see [`Machine::pods_dir`] for the others.
    pub fn kubelet_pods_dir(&self) -> PathBuf {
        self.place.kubelet().join("pods")
    }

    /// The log of a daemon (`kubelet`, `kube-apiserver`, …) or the audit log (`audit.jsonl`).
    pub fn log(&self, name: &str) -> PathBuf {
        match name {
            "audit.jsonl" => self.place.path("logs/audit.jsonl"),
            name => self.daemons.log(name),
        }
    }

    /// The requests to the API server in the audit log: all but one that it is just writing down.
    ///
    /// # Errors
    /// Without an audit log, or when a line of it is not JSON.
    pub fn audit_events(&self) -> Result<Vec<serde_json::Value>> {
        let log = std::fs::read_to_string(self.log("audit.jsonl"))?;
        let lines = log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        lines
            .map(|line| serde_json::from_str(line).context("a line of the audit log"))
            .collect()
    }

    /// The object storage.
    ///
    /// # Panics
    /// When the cluster was brought up without.
    #[allow(
        clippy::expect_used,
        reason = "a test that asks for S3 without one is wrong"
    )]
    pub fn s3(&self) -> &S3 {
        self.s3
            .as_ref()
            .expect("the cluster was brought up with S3")
    }

    /// Ends the S3 server at once; connections are refused from then on.
    ///
    /// # Errors
    /// None at present.
    pub fn s3_stop(&self) -> Result<()> {
        self.daemons.stop(s3::NAME, Signal::KILL)
    }

    /// Starts the S3 server again, with what it held.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn s3_start(&self) -> Result<()> {
        s3::start(&self.place, &self.daemons, &tools::ready(tools::MINIO)?)?;
        self.s3().wait_ready(&self.daemons).await
    }

    /// A kubectl command as an administrator, for whatever needs its own way of running.
    pub fn kubectl_command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut kubectl = command(plane::component_path(&self.place, "kubectl"), args);
        kubectl.env("KUBECONFIG", self.kubeconfig());
        kubectl
    }

    /// Runs kubectl as an administrator and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        run(&mut self.kubectl_command(args))
    }

    /// Applies manifests (YAML, several documents allowed) by server-side apply.
    ///
    /// # Errors
    /// When kubectl refuses them, with what it said.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        let mut kubectl = self.kubectl_command(["apply", "--server-side", "-f", "-"]);
        kubectl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = kubectl.spawn().context("start kubectl")?;
        let mut input = child.stdin.take().context("kubectl's standard input")?;
        input.write_all(manifests.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl apply: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command in a container and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let args = ["exec", "-n", namespace, pod, "--"];
        self.kubectl(args.iter().chain(command))
    }

    /// A command that runs in the cluster's network, in this machine's file system.
    pub fn enter<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        network::inside(&self.place.netns(), args)
    }

    /// A listening socket that pods reach; its address is theirs too.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn listen(&self) -> Result<TcpListener> {
        network::listen(&self.place.netns())
    }

    /// Makes an image available to pods; one of that name is replaced for pods made later.
    ///
    /// # Errors
    /// When a file of it is missing or containerd refuses it.
    pub fn load_image(&self, image: &ImageSpec) -> Result<()> {
        up::load_image(&self.sites(), image)
    }

    /// Loads the images of Jackline's own programs.
    ///
    /// # Errors
    /// As [`Self::load_image`].
    pub fn load_jackline(&self, programs: &Programs) -> Result<()> {
        let scratch = self.place.path("programs");
        programs
            .images(&scratch)?
            .iter()
            .try_for_each(|image| self.load_image(image))
    }

    /// The process id, on this machine, of a running container's first process.
    ///
    /// # Errors
    /// When the pod has no such container running.
    pub async fn container_pid(&self, namespace: &str, pod: &str, container: &str) -> Result<i32> {
        let found = Api::<Pod>::namespaced(self.client(), namespace)
            .get(pod)
            .await?;
        let status = found.status.unwrap_or_default();
        let all = status
            .container_statuses
            .into_iter()
            .chain(status.init_container_statuses);
        let id = all
            .flatten()
            .find(|status| status.name == container)
            .and_then(|status| status.container_id)
            .with_context(|| format!("{namespace}/{pod}: no container {container}"))?;
        let id = id.trim_start_matches("containerd://");
        let pid = self.sites().iter().find_map(|site| {
            std::fs::read_to_string(site.bundles().join(id).join("init.pid")).ok()
        });
        let pid =
            pid.with_context(|| format!("{namespace}/{pod}: container {container} does not run"))?;
        Ok(pid.trim().parse()?)
    }

    /// Kills a container's first process with SIGKILL.
    ///
    /// # Errors
    /// As [`Self::container_pid`].
    pub async fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Result<()> {
        let pid = self.container_pid(namespace, pod, container).await?;
        let pid = Pid::from_raw(pid).context("a process id is positive")?;
        kill_process(pid, Signal::KILL)
            .with_context(|| format!("kill {namespace}/{pod}, container {container}"))
    }

    /// The processes of the cluster on this machine, containers' included.
    pub fn processes(&self) -> Vec<i32> {
        self.cgroups.processes()
    }

    /// Leaves the cluster up when this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Takes the cluster down and removes its directory.
    ///
    /// # Errors
    /// When something is left behind.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        clean(&self.place, &self.cgroups)
    }

    /// Takes down whatever is left of a cluster in a directory, running or not.
    ///
    /// # Errors
    /// When another program owns it, it is no cluster's, or something is left behind.
    pub fn down_at(dir: &Path) -> Result<()> {
        // A directory that is gone may have left processes behind; its path still tells which.
        let place = Place::at(dir)?;
        let _lock = lock(&place)?;
        clean(&place, &Cgroups::of(&place.id)?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // A test that succeeds takes its cluster down itself.
        if std::env::var_os("JACKLINE_KEEP").is_some() {
            eprintln!("the cluster is kept in {}", self.place.dir.display());
            return;
        }
        if let Err(error) = clean(&self.place, &self.cgroups) {
            eprintln!(
                "take down the cluster in {}: {error:#}",
                self.place.dir.display()
            );
        }
    }
}

/// Claims a cluster's directory for this program. The lock lies beside the directory, since the directory goes.
pub(crate) fn lock(place: &Place) -> Result<File> {
    let file = std::env::temp_dir().join(format!("{}.lock", place.id));
    let lock = File::create(&file).with_context(|| format!("create {}", file.display()))?;
    if lock.try_lock().is_err() {
        bail!(
            "another program uses the cluster in {}",
            place.dir.display()
        );
    }
    Ok(lock)
}

/// Ends every process of a cluster and removes everything it made.
pub(crate) fn clean(place: &Place, cgroups: &Cgroups) -> Result<()> {
    place.ensure_ours()?;
    cgroups.kill_all()?;
    node::remove_leftovers(place)?;
    mounts::unmount_below(&place.dir)?;
    cgroups.remove()?;
    let left = cgroups.existing();
    ensure!(left.is_empty(), "control groups are left: {left:?}");
    std::fs::remove_dir_all(&place.dir).with_context(|| format!("remove {}", place.dir.display()))
}

pub(crate) async fn client_of(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
