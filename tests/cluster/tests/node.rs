//! A whole cluster does what the tests of Jackline need of it, and leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, too"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use jackline_test_cluster::{BUSYBOX_IMAGE, Cluster, ImageSpec, Options};

fn up_and_ready(cluster: &Cluster) {
    for stage in cluster.stages() {
        println!("{:>6} ms  {}", stage.took.as_millis(), stage.name);
    }
    let pods = cluster.kubelet_pods_dir();
    let workloads = include_str!("workloads.yaml").replace("PODS_DIR", pods.to_str().unwrap());
    cluster.apply(&workloads).unwrap();
    cluster
        .kubectl(["rollout", "status", "deployment/web", "--timeout=120s"])
        .unwrap();
    wait_pod(cluster, "watcher");
    cluster.apply(include_str!("box.yaml")).unwrap();
    wait_pod(cluster, "box");
}

fn wait_pod(cluster: &Cluster, name: &str) {
    let pod = format!("pod/{name}");
    cluster
        .kubectl(["wait", "--for=condition=Ready", &pod, "--timeout=120s"])
        .unwrap();
}

/// Runs a shell command in the pod `box`.
fn shell(cluster: &Cluster, line: &str) -> String {
    cluster.exec("default", "box", &["sh", "-c", line]).unwrap()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_volumes_services_and_object_storage() {
    let cluster = Cluster::up(Options::named("node")).await.unwrap();
    up_and_ready(&cluster);

    // A volume of each class, written in the pod and seen on the node, and by a pod that started before the mount.
    shell(&cluster, "echo one > /data/file && echo two > /cache/file");
    let uid = cluster
        .kubectl(["get", "pod", "box", "-o", "jsonpath={.metadata.uid}"])
        .unwrap();
    let volume = cluster
        .kubectl(["get", "pvc", "own", "-o", "jsonpath={.spec.volumeName}"])
        .unwrap();
    let inside = format!("{uid}/volumes/kubernetes.io~csi/{volume}/mount/file");
    let on_node = cluster.kubelet_pods_dir().join(&inside);
    assert_eq!(std::fs::read_to_string(&on_node).unwrap(), "one\n");
    assert_eq!(std::fs::metadata(&on_node).unwrap().uid(), 1000);
    let seen = format!("/host_pods/{inside}");
    assert_eq!(
        cluster.exec("default", "watcher", &["cat", &seen]).unwrap(),
        "one\n"
    );

    // Both replicas answer behind the Service, and log into the one volume that they share.
    let mut answered = BTreeSet::new();
    eventually("both replicas answer", || {
        let said = shell(&cluster, "wget -qO- http://$WEB_SERVICE_HOST/hello");
        answered.extend(said.split_whitespace().next().map(str::to_owned));
        answered.len() == 2
    });
    let log = cluster
        .exec(
            "default",
            "deploy/web",
            &["cat", "/var/log/nginx/access.log"],
        )
        .unwrap();
    assert!(
        log.lines().filter(|line| line.contains("/hello")).count() >= 2,
        "{log}"
    );

    // Object storage, from the machine and from a pod; gone and back.
    let s3 = cluster.s3();
    s3.make_bucket("bucket").await.unwrap();
    s3.make_bucket("bucket").await.unwrap();
    s3.put("bucket", "a/b", b"content".to_vec()).await.unwrap();
    assert_eq!(s3.get("bucket", "a/b").await.unwrap(), b"content");
    let health = format!("wget -qO- {}/minio/health/live", s3.endpoint);
    shell(&cluster, &health);
    cluster.s3_stop().unwrap();
    assert!(
        cluster
            .exec("default", "box", &["sh", "-c", &health])
            .is_err(),
        "S3 still answers"
    );
    cluster.s3_start().await.unwrap();
    assert_eq!(s3.list("bucket", "a/").await.unwrap().len(), 1);
    assert_eq!(s3.size("bucket", "").await.unwrap(), 7);

    // A container that is killed is started again; its volume stays.
    let before = cluster
        .container_pid("default", "box", "box")
        .await
        .unwrap();
    cluster
        .kill_container("default", "box", "box")
        .await
        .unwrap();
    eventually("the container is started again", || {
        let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
        cluster
            .kubectl(["get", "pod", "box", "-o", restarts])
            .unwrap()
            == "1"
    });
    wait_pod(&cluster, "box");
    assert_ne!(
        cluster
            .container_pid("default", "box", "box")
            .await
            .unwrap(),
        before
    );
    assert_eq!(shell(&cluster, "cat /data/file"), "one\n");

    // An image of one's own; the program brings its libraries.
    let mut image = ImageSpec::new("docker.io/local/own:1").program("/cat", Path::new("/bin/cat"));
    let image = image.as_mut().unwrap();
    image.entrypoint = vec!["/cat".into(), "/etc/passwd".into()];
    cluster.load_image(image).unwrap();
    let run = [
        "run",
        "own",
        "--image=docker.io/local/own:1",
        "--restart=Never",
    ];
    cluster.kubectl(run).unwrap();
    eventually("the pod has printed", || {
        cluster
            .kubectl(["logs", "own"])
            .is_ok_and(|log| log.contains("root:"))
    });

    // A deleted claim takes its volume's data with it.
    cluster.kubectl(["delete", "pod/box", "pvc/own"]).unwrap();
    let data = cluster.dir().join("volumes/csi").join(&volume);
    eventually("the volume's directory is removed", || !data.exists());
    cluster
        .kubectl([
            "wait",
            "--for=delete",
            &format!("pv/{volume}"),
            "--timeout=60s",
        ])
        .unwrap();
    cluster.down().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_side_by_side_and_nothing_left() {
    let interfaces = command(&["ip", "-o", "link"]);
    let (left, right) = tokio::join!(
        tokio::spawn(Cluster::up(Options::named("left"))),
        tokio::spawn(Cluster::up(Options::named("right"))),
    );
    let (left, right) = (left.unwrap().unwrap(), right.unwrap().unwrap());
    up_and_ready(&left);
    up_and_ready(&right);
    shell(&left, "echo left > /data/file");
    shell(&right, "echo right > /data/file");
    assert_eq!(shell(&left, "cat /data/file"), "left\n");

    let traces = [Traces::of(&left), Traces::of(&right)];
    for traces in &traces {
        assert!(
            traces.mounts() > 5 && traces.alive() > 10 && traces.cgroups() > 0,
            "{traces:?}"
        );
    }
    left.down().unwrap();
    traces[0].assert_gone();
    assert_eq!(shell(&right, "cat /data/file"), "right\n");
    shell(&right, "wget -qO- http://$WEB_SERVICE_HOST/");
    right.down().unwrap();
    traces[1].assert_gone();
    assert_eq!(command(&["ip", "-o", "link"]), interfaces);
}

fn command(line: &[&str]) -> String {
    let output = Command::new(line[0]).args(&line[1..]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What a cluster is on the machine.
#[derive(Debug)]
struct Traces {
    dir: String,
    id: String,
    processes: Vec<i32>,
    network: u64,
}

impl Traces {
    fn of(cluster: &Cluster) -> Self {
        Self {
            dir: cluster.dir().to_str().unwrap().to_owned(),
            id: cluster.id().to_owned(),
            processes: cluster.processes(),
            network: std::fs::metadata(cluster.dir().join("netns"))
                .unwrap()
                .ino(),
        }
    }

    fn assert_gone(&self) {
        assert!(!Path::new(&self.dir).exists());
        assert_eq!(
            (
                self.alive(),
                self.mounts(),
                self.cgroups(),
                self.in_network()
            ),
            (0, 0, 0, 0)
        );
        let results = std::fs::read_dir("/var/lib/cni/results")
            .into_iter()
            .flatten()
            .flatten();
        let ours = results.filter(|r| r.file_name().to_string_lossy().starts_with(&self.id));
        assert_eq!(ours.count(), 0);
    }

    fn alive(&self) -> usize {
        let alive = |pid: &&i32| Path::new(&format!("/proc/{pid}")).exists();
        self.processes.iter().filter(alive).count()
    }

    fn mounts(&self) -> usize {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts
            .lines()
            .filter(|line| line.contains(&self.dir))
            .count()
    }

    fn cgroups(&self) -> usize {
        command(&[
            "find",
            "/sys/fs/cgroup",
            "-maxdepth",
            "2",
            "-name",
            &self.id,
        ])
        .lines()
        .count()
    }

    /// Processes in the cluster's network namespace, wherever they come from.
    fn in_network(&self) -> usize {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let networks = processes.filter_map(|p| std::fs::metadata(p.path().join("ns/net")).ok());
        networks
            .filter(|network| network.ino() == self.network)
            .count()
    }
}

#[test]
fn images_must_name_the_registry_that_containerd_assumes() {
    let archive = std::env::temp_dir().join("jackline-test-image.tar");
    let error = ImageSpec::new("local/busybox:1")
        .write(&archive)
        .unwrap_err();
    assert!(error.to_string().contains("docker.io"), "{error}");
    assert!(BUSYBOX_IMAGE.starts_with("docker.io/"));
}
