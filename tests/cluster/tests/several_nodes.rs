//! Several nodes: pods, volumes and Services reach across them, and one of them may go and come back.
#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails by panicking, too"
)]

use std::time::{Duration, Instant};

use jackline_test_cluster::{Cluster, Options};

const LIMIT: Duration = Duration::from_secs(120);

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A pod bound to a node, with a volume of its own of each class and one that all of them share.
fn pod(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: local-{node}}}
spec: {{storageClassName: local, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: csi-{node}}}
spec: {{storageClassName: csi, accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Mi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: on-{node}, labels: {{app: on-{node}}}}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  containers:
  - name: web
    image: docker.io/local/nginx:1
  - name: box
    image: docker.io/local/busybox:1
    volumeMounts:
    - {{name: local, mountPath: /local}}
    - {{name: csi, mountPath: /csi}}
    - {{name: shared, mountPath: /shared}}
    - {{name: host, mountPath: /host_pods, mountPropagation: HostToContainer}}
  volumes:
  - {{name: local, persistentVolumeClaim: {{claimName: local-{node}}}}}
  - {{name: csi, persistentVolumeClaim: {{claimName: csi-{node}}}}}
  - {{name: shared, persistentVolumeClaim: {{claimName: shared}}}}
  - {{name: host, hostPath: {{path: PODS_DIR}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: on-{node}}}
spec: {{selector: {{app: on-{node}}}, ports: [{{port: 80}}]}}
---
"#
    )
}

fn get(cluster: &Cluster, object: &str, path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    cluster.kubectl(["get", object, "-o", &path]).unwrap()
}

fn shell(cluster: &Cluster, pod: &str, line: &str) -> anyhow::Result<String> {
    let container = ["exec", pod, "-c", "box", "--", "sh", "-c", line];
    cluster.kubectl(container)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_two_nodes_share_network_and_volumes_and_a_node_may_go_and_come_back() {
    let cluster = Cluster::up(Options::named("two-nodes").nodes(2))
        .await
        .unwrap();
    for stage in cluster.stages() {
        println!("{:>6} ms  {}", stage.took.as_millis(), stage.name);
    }
    assert_eq!(cluster.nodes(), ["node-1", "node-2"]);
    let shared = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {storageClassName: csi, accessModes: [ReadWriteMany], resources: {requests: {storage: 1Mi}}}
---
";
    let host = cluster.kubelet_pods_dir();
    let manifests = [shared.to_owned(), pod("node-1"), pod("node-2")].concat();
    cluster
        .apply(&manifests.replace("PODS_DIR", host.to_str().unwrap()))
        .unwrap();
    let ready = [
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=120s",
    ];
    cluster.kubectl(ready).unwrap();

    // Each kubelet has a directory of its own, at the same host path.
    for name in cluster.nodes() {
        let pod = format!("on-{name}");
        let write = format!("for d in local csi; do echo {name} > /$d/file; done");
        shell(&cluster, &pod, &write).unwrap();
        let uid = get(&cluster, &format!("pod/{pod}"), ".metadata.uid");
        let machine = cluster.machine(name).unwrap();
        for (class, kind, below) in [("local", "local-volume", ""), ("csi", "csi", "/mount")] {
            let claim = format!("pvc/{class}-{name}");
            let volume = get(&cluster, &claim, ".spec.volumeName");
            let inside = format!("{uid}/volumes/kubernetes.io~{kind}/{volume}{below}/file");
            let seen = std::fs::read_to_string(machine.pods_dir().join(&inside)).unwrap();
            assert_eq!(seen.trim(), name, "{inside}");
            let path = format!("/host_pods/{inside}");
            let container = ["exec", &pod, "-c", "box", "--", "cat", &path];
            assert_eq!(cluster.kubectl(container).unwrap().trim(), name);
        }
        let pods = std::fs::read_dir(machine.pods_dir()).unwrap().count();
        assert_eq!(pods, 1, "{name} has its own pods alone");
    }

    // Across the nodes: by address, by Service, to the API server and S3, and through a volume.
    for (from, to) in [("node-1", "node-2"), ("node-2", "node-1")] {
        let pod = format!("on-{from}");
        let address = get(&cluster, &format!("pod/on-{to}"), ".status.podIP");
        let service = get(&cluster, &format!("svc/on-{to}"), ".spec.clusterIP");
        for host in [&address, &service] {
            eventually(&format!("{from} reaches {to} at {host}"), || {
                shell(
                    &cluster,
                    &pod,
                    &format!("timeout 3 wget -qO- http://{host}/x"),
                )
                .is_ok_and(|said| said.contains(&format!("on-{to}")))
            });
        }
        let health = format!(
            "timeout 5 wget -qO- {}/minio/health/live",
            cluster.s3().endpoint
        );
        shell(&cluster, &pod, &health).unwrap();
        let api = "nc -w 5 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT < /dev/null";
        shell(&cluster, &pod, api).unwrap();
        shell(&cluster, &pod, &format!("echo {from} > /shared/{from}")).unwrap();
        let read = format!("cat /shared/{from}");
        let other = shell(&cluster, &format!("on-{to}"), &read).unwrap();
        assert_eq!(other.trim(), from);
    }

    // Gone: the cluster notices, the other node goes on. Back: its pods run again, with their data.
    let ready = |node: &str| {
        let node = format!("node/{node}");
        get(
            &cluster,
            &node,
            ".status.conditions[?(@.type==\"Ready\")].status",
        )
    };
    let second = cluster.machine("node-2").unwrap();
    second.stop().unwrap();
    let stopped = Instant::now();
    assert!(shell(&cluster, "on-node-2", "true").is_err());
    eventually("node-2 is seen to be gone", || ready("node-2") == "Unknown");
    println!("seen to be gone after {} s", stopped.elapsed().as_secs());
    assert_eq!(ready("node-1"), "True");
    shell(&cluster, "on-node-1", "cat /shared/node-2").unwrap();
    second.start().await.unwrap();
    eventually("the pod runs again", || {
        shell(&cluster, "on-node-2", "cat /local/file /csi/file")
            .is_ok_and(|said| said == "node-2\nnode-2\n")
    });
    cluster.down().unwrap();
}
