//! Bringing a cluster up.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::api::storage::v1::CSINode;
use kube::{Api, Client};

use crate::cgroup::Cgroups;
use crate::cluster::{Cluster, client_of};
use crate::daemon::Daemons;
use crate::place::Place;
use crate::site::Site;
use crate::state::State;
use crate::{images, network, node, packages, pki, plane, s3, tools};

/// What to bring up and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything the cluster keeps; made when it is not there, removed by [`Cluster::down`].
    pub dir: PathBuf,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// etcd and the API server alone.
    pub control_plane_only: bool,
    /// The controller manager, also in a cluster that is a control plane only.
    pub controllers: bool,
    /// Write an audit log of all requests to `logs/audit.jsonl`.
    pub audit_log: bool,
    /// An S3 server.
    pub s3: bool,
    /// Leave the cluster up when the [`Cluster`] is dropped.
    pub keep: bool,
}

impl Options {
    /// A whole cluster in a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            nodes: vec!["node-1".to_owned()],
            control_plane_only: false,
            controllers: true,
            audit_log: false,
            s3: true,
            keep: false,
        }
    }

    /// A whole cluster for a test of that name, in the directory for temporary files.
    pub fn named(name: &str) -> Self {
        Self::new(std::env::temp_dir().join(format!("jackline-test-{name}")))
    }

    /// Several nodes: `node-1`, `node-2` and so on.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = (1..=count).map(|n| format!("node-{n}")).collect();
        self
    }

    /// etcd and the API server alone, without S3.
    #[must_use]
    pub fn control_plane(mut self) -> Self {
        self.control_plane_only = true;
        self.controllers = false;
        self.s3 = false;
        self
    }
}

/// How long a part of bringing the cluster up took.
#[derive(Debug, Clone)]
pub struct Stage {
    pub name: &'static str,
    pub took: Duration,
}

/// Notes the time between calls.
struct Clock {
    last: Instant,
    stages: Vec<Stage>,
}

impl Clock {
    fn stage(&mut self, name: &'static str) {
        self.stages.push(Stage {
            name,
            took: self.last.elapsed(),
        });
        self.last = Instant::now();
    }
}

/// Each has an address range of its own.
const MOST_NODES: usize = 9;
const NODE_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn up(options: Options) -> Result<Cluster> {
    // Another part of the same program may have chosen its provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ensure!(
        (1..=MOST_NODES).contains(&options.nodes.len()),
        "a cluster has 1 to {MOST_NODES} nodes, not {}",
        options.nodes.len()
    );
    packages::install()?;
    let place = Place::at(&options.dir)?;
    let lock = crate::cluster::lock(&place)?;
    let cgroups = Cgroups::of(&place.id)?;
    crate::cluster::clean(&place, &cgroups).context("clean up after an earlier run")?;
    let place = Place::at(&options.dir)?;
    place.mark()?;
    match start(&options, &place, &cgroups).await {
        Ok(cluster) => Ok(cluster.owned(lock, options.keep)),
        Err(error) => {
            if let Err(also) = crate::cluster::clean(&place, &cgroups) {
                eprintln!("clean up: {also:#}");
            }
            Err(error)
        }
    }
}

async fn start(options: &Options, place: &Place, cgroups: &Cgroups) -> Result<Cluster> {
    let kube = tools::ready(tools::KUBE)?;
    let forward = tools::ready(tools::FORWARD)?;
    let mut clock = Clock {
        last: Instant::now(),
        stages: Vec::new(),
    };
    let daemons = Daemons::of(place, cgroups);
    let sites = Site::all(place, &options.nodes);
    let heartbeat = node::Heartbeat::of(sites.len());
    let groups: Vec<_> = sites.iter().map(Site::group).collect();
    cgroups.create(&groups)?;
    network::create(place)?;
    if !options.control_plane_only {
        sites.iter().try_for_each(Site::prepare)?;
    }
    plane::link_components(place, &kube)?;
    clock.stage("network and control groups");

    plane::start_api(place, &daemons, &sites, options.audit_log)?;
    let images = if options.control_plane_only {
        None
    } else {
        for site in &sites {
            node::start_containerd(site, &daemons)?;
        }
        let (sites, daemons) = (sites.clone(), daemons.clone());
        Some(thread::spawn(move || load_images(&sites, &daemons)))
    };
    let api_port = network::forward(&daemons, &forward, "api", plane::API_PORT)?;
    pki::kubeconfig(
        place,
        "kubeconfig",
        "admin",
        &format!("https://127.0.0.1:{api_port}"),
    )?;
    let s3_port = if options.s3 {
        s3::start(place, &daemons, &tools::ready(tools::MINIO)?)?;
        Some(network::forward(&daemons, &forward, "s3", s3::PORT)?)
    } else {
        None
    };
    let client = client_of(&place.path("kubeconfig")).await?;
    plane::wait_ready(&client, &daemons).await?;
    clock.stage("API server");

    if options.controllers {
        plane::start_controller_manager(place, &daemons, heartbeat)?;
    }
    if let Some(images) = images {
        plane::start_scheduler(place, &daemons)?;
        let volumes = tools::ready(tools::VOLUMES)?;
        for site in &sites {
            node::start_kubelet(site, &daemons, cgroups, heartbeat)?;
            node::start_proxy(site, &daemons)?;
            node::start_volumes(site, &daemons, &volumes)?;
        }
        let loaded = tokio::task::spawn_blocking(move || images.join()).await?;
        loaded.map_err(|_| anyhow!("the thread that loads the images panicked"))??;
        clock.stage("images");
        for site in &sites {
            wait_node(&client, &daemons, site).await?;
        }
        clock.stage("node");
    }
    if options.controllers {
        wait_service_account(&client, &daemons).await?;
        clock.stage("service accounts");
    }
    let state = State {
        nodes: options.nodes.clone(),
        api_port,
        s3_port,
        control_plane_only: options.control_plane_only,
    };
    let cluster = Cluster::new(
        place.clone(),
        cgroups.clone(),
        daemons,
        state.clone(),
        client,
        clock.stages,
    );
    if let Some(s3) = cluster.object_storage() {
        s3.wait_ready(cluster.daemons()).await?;
    }
    state.save(cluster.place())?;
    Ok(cluster)
}

/// Waits for containerd and loads the images that every cluster has.
fn load_images(sites: &[Site], daemons: &Daemons) -> Result<()> {
    let pause = tools::ready(tools::PAUSE)?;
    let specs = [images::pause(&pause), images::busybox()?, images::nginx()?];
    for site in sites {
        node::wait_containerd(site, daemons)?;
    }
    specs.iter().try_for_each(|spec| load_image(sites, spec))
}

/// Loads an image on every node.
pub(crate) fn load_image(sites: &[Site], spec: &crate::ImageSpec) -> Result<()> {
    let first = sites.first().context("a cluster has a node")?;
    let archive = first.place.write("image.tar", "")?;
    let archive =
        archive.with_file_name(format!("image-{}.tar", spec.name.replace(['/', ':'], "-")));
    spec.write(&archive)?;
    for site in sites {
        node::import_image(site, &archive)?;
    }
    std::fs::remove_file(&archive)?;
    Ok(())
}

/// Waits until the node takes pods and the CSI driver is registered there.
pub(crate) async fn wait_node(client: &Client, daemons: &Daemons, site: &Site) -> Result<()> {
    let name = site.name.as_str();
    let running = ["kubelet", "containerd", "volumes"].map(|daemon| site.daemon(daemon));
    let nodes = Api::<Node>::all(client.clone());
    let drivers = Api::<CSINode>::all(client.clone());
    let deadline = Instant::now() + NODE_DEADLINE;
    loop {
        let node = nodes.get_opt(name).await?;
        let conditions = node
            .and_then(|node| node.status)
            .and_then(|status| status.conditions);
        let ready = conditions
            .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
        let driver = drivers.get_opt(name).await?;
        if ready && driver.is_some_and(|node| !node.spec.drivers.is_empty()) {
            return Ok(());
        }
        daemons.ensure_running(&running.each_ref().map(String::as_str))?;
        if Instant::now() > deadline {
            bail!(
                "{name} did not become ready:\n{}",
                daemons.last_words(&site.daemon("kubelet"))
            );
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until pods can be made in the namespace `default`.
async fn wait_service_account(client: &Client, daemons: &Daemons) -> Result<()> {
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    let deadline = Instant::now() + NODE_DEADLINE;
    while accounts.get_opt("default").await?.is_none() {
        daemons.ensure_running(&["kube-controller-manager"])?;
        if Instant::now() > deadline {
            let said = daemons.last_words("kube-controller-manager");
            bail!("the controller manager makes no service accounts:\n{said}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
