//! The dashboard and the rules: what they say is sound, and every query returns data from a real Prometheus that scraped the real
//! processes as their annotations ask for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jackline_e2e::{Env, until};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use serde_json::{Value, json};

/// Prefixes of the metrics that Jackline's programs serve.
const PREFIXES: [&str; 4] = ["jackline_", "velero_", "podVolume_", "process_"];

fn room() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards")
}

fn dashboard() -> Value {
    let text =
        std::fs::read_to_string(room().join("grafana/jackline.json")).expect("the dashboard");
    serde_json::from_str(&text).expect("JSON")
}

/// Panels that show something: rows are not among them.
fn panels(dashboard: &Value) -> Vec<Value> {
    let all = dashboard["panels"].as_array().expect("panels");
    all.iter()
        .filter(|panel| panel["type"] != "row")
        .cloned()
        .collect()
}

/// Title of the panel and query, for every target of the dashboard.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in panels(dashboard) {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push((
                title.to_owned(),
                target["expr"].as_str().expect("a query").to_owned(),
            ));
        }
    }
    found
}

/// The names of metrics in a query.
fn metrics(query: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = query.split(|c| !word(c));
    words
        .filter(|w| PREFIXES.iter().any(|p| w.starts_with(p)))
        .map(str::to_owned)
        .collect()
}

/// Name and query of every alert.
fn alerts() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(room().join("rules/jackline.yaml")).expect("the rules");
    let mut found: Vec<(String, String)> = Vec::new();
    let mut folded = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix("- alert: ") {
            found.push((name.to_owned(), String::new()));
        } else if let Some(query) = trimmed.strip_prefix("expr: ") {
            folded = query == ">-";
            if !folded {
                found.last_mut().expect("an alert").1 = query.to_owned();
            }
        } else if folded && (trimmed.starts_with("for: ") || trimmed.starts_with("labels: ")) {
            folded = false;
        } else if folded {
            let query = &mut found.last_mut().expect("an alert").1;
            query.push_str(trimmed);
            query.push(' ');
        }
    }
    found
}

#[test]
fn the_dashboard_is_sound() {
    let dashboard = dashboard();
    assert_eq!(dashboard["editable"], false);
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(
            ids.insert(panel["id"].as_u64().expect("an id")),
            "two panels with one id"
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        for x in at("x")..at("x") + at("w") {
            assert!(x < 24);
            for y in at("y")..at("y") + at("h") {
                assert!(
                    cells.insert((x, y)),
                    "{} lies on another panel",
                    panel["title"]
                );
            }
        }
    }
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().expect("a title");
        assert!(
            panel["description"].as_str().is_some_and(|d| !d.is_empty()),
            "{title} has no description"
        );
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title} has no unit"
        );
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(
            panel["targets"].as_array().is_some_and(|t| !t.is_empty()),
            "{title} is empty"
        );
    }
    for (title, query) in queries(&dashboard) {
        assert!(!metrics(&query).is_empty(), "{title}: {query}");
        for (at, _) in query.match_indices("rate(") {
            assert!(
                query[at..].contains("[$__rate_interval]"),
                "{title}: {query}"
            );
        }
        let selectors = query.matches(r#"job=~"$job""#).count();
        assert!(
            selectors >= metrics(&query).len(),
            "{title} does not select the job: {query}"
        );
    }
}

#[test]
fn every_alert_is_tested_and_explained() {
    let tests = std::fs::read_to_string(room().join("rules/jackline.test.yaml")).expect("tests");
    let guide =
        std::fs::read_to_string(room().join("../docs/how-to/alerts.md")).expect("the guide");
    let alerts = alerts();
    assert!(alerts.len() >= 17, "{alerts:?}");
    for (name, query) in alerts {
        assert!(!metrics(&query).is_empty(), "{name}: {query}");
        for word in ["fires", "stays quiet"] {
            assert!(
                tests.contains(&format!("- name: {name} {word}\n")),
                "{name} {word}: no such test"
            );
        }
        assert!(
            guide.contains(&format!("\n## {name}\n")),
            "docs/how-to/alerts.md does not explain {name}"
        );
    }
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    for arguments in [
        ["check", "rules", "jackline.yaml"],
        ["test", "rules", "jackline.test.yaml"],
    ] {
        let output = Command::new("promtool")
            .args(arguments)
            .current_dir(room().join("rules"))
            .output()
            .expect("promtool");
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
    }
}

/// Where a pod asks to be scraped.
fn target(pod: &Pod) -> Option<Value> {
    let annotations = pod.metadata.annotations.as_ref()?;
    if annotations.get("prometheus.io/scrape")? != "true" {
        return None;
    }
    let address = pod.status.as_ref()?.pod_ip.as_ref()?;
    let (port, path) = (
        annotations.get("prometheus.io/port")?,
        annotations.get("prometheus.io/path")?,
    );
    Some(json!({
        "targets": [format!("{address}:{port}")],
        "labels": {"pod": pod.metadata.name, "__metrics_path__": path},
    }))
}

/// A Prometheus in the cluster's network that scrapes pods as their annotations ask for.
struct Prometheus<'a> {
    env: &'a Env,
    process: Child,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl<'a> Prometheus<'a> {
    async fn start(env: &'a Env, directory: &Path) -> Result<Self> {
        // Debian's build knows no Kubernetes discovery: what it would find is looked up here, from the same annotations.
        let pods = env.api::<Pod>().list(&ListParams::default()).await?;
        let targets: Vec<Value> = pods.items.iter().filter_map(target).collect();
        ensure!(
            targets.len() == 3,
            "two controllers and one node agent ask to be scraped: {targets:?}"
        );
        std::fs::write(
            directory.join("targets.json"),
            serde_json::to_vec(&targets)?,
        )?;
        let config = json!({
            "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
            "rule_files": [room().join("rules/jackline.yaml")],
            "scrape_configs": [{
                "job_name": "kubernetes-pods",
                "file_sd_configs": [{"files": [directory.join("targets.json")]}],
            }],
        });
        let config = config.to_string();
        let file = directory.join("prometheus.yml");
        std::fs::write(&file, config)?;
        let log = std::fs::File::create(directory.join("prometheus.log"))?;
        let process = env
            .cluster
            .enter([
                "prometheus".to_owned(),
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", directory.join("data").display()),
                "--web.listen-address=127.0.0.1:9090".to_owned(),
            ])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("prometheus")?;
        let this = Self { env, process };
        let up = async || Ok((this.query("count(up == 1)")?.len() == 1).then_some(()));
        if let Err(error) = until("Prometheus scrapes", Duration::from_secs(30), up).await {
            let log = std::fs::read_to_string(directory.join("prometheus.log"))?;
            return Err(error.context(log));
        }
        Ok(this)
    }

    /// The series of an instant query.
    fn query(&self, query: &str) -> Result<Vec<Value>> {
        let output = self
            .env
            .cluster
            .enter([
                "promtool",
                "query",
                "instant",
                "-o",
                "json",
                "http://127.0.0.1:9090",
                query,
            ])
            .output()?;
        ensure!(
            output.status.success(),
            "{query}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        match serde_json::from_slice(&output.stdout)? {
            Value::Array(series) => Ok(series),
            other => anyhow::bail!("{query}: {other}"),
        }
    }
}

const WORKLOAD: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: shop}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: local
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: db
    image: docker.io/local/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "while true; do dd if=/dev/urandom of=/data/$(date +%s) bs=64k count=4; sleep 3; done"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data}}
"#;

const POLICY: &str = r#"
apiVersion: jackline.dev/v1alpha1
kind: ClusterBackupPolicy
metadata: {name: everything}
spec:
  namespaces: {include: [shop]}
  schedule: {cron: "@every 15s"}
  retention: {keepLast: 1, minimumGood: 1}
  repository: {prune: "@every 15s"}
"#;

const RESTORE: &str = r#"
apiVersion: velero.io/v1
kind: Restore
metadata: {name: back, namespace: velero}
spec:
  scheduleName: everything
  namespaceMapping: {shop: shop-again}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_query_returns_data_from_the_real_processes() -> Result<()> {
    let env = Env::up("dashboards").await?;
    let directory = tempfile::tempdir()?;
    let prometheus = Prometheus::start(&env, directory.path()).await?;
    env.cluster.apply(WORKLOAD)?;
    env.cluster.kubectl([
        "-n",
        "shop",
        "wait",
        "--for=condition=Ready",
        "pod/db",
        "--timeout=60s",
    ])?;
    env.cluster.apply(POLICY)?;

    let minute = Duration::from_secs(60);
    let some = |query: &'static str| {
        let prometheus = &prometheus;
        async move || Ok(prometheus.query(query)?.first().cloned())
    };
    // Backup, restore, deletion and maintenance have each happened once: then there is something to show everywhere.
    until(
        "two backups complete",
        2 * minute,
        some("velero_backup_success_total{schedule=\"everything\"} > 1"),
    )
    .await?;
    env.cluster.apply(RESTORE)?;
    until(
        "the restore completes",
        2 * minute,
        some("velero_restore_success_total > 0"),
    )
    .await?;
    until(
        "retention deletes",
        2 * minute,
        some("velero_backup_deletion_success_total > 0"),
    )
    .await?;
    until(
        "maintenance runs",
        2 * minute,
        some("velero_repo_maintenance_success_total > 0"),
    )
    .await?;

    let mut without = BTreeMap::new();
    let substituted = |query: &str| {
        query
            .replace("$job", ".+")
            .replace("$__rate_interval", "30s")
    };
    for (title, query) in queries(&dashboard()) {
        if prometheus.query(&substituted(&query))?.is_empty() {
            without.insert(query, title);
        }
    }
    for (name, query) in alerts() {
        // An alert's own query is empty when all is well: it has to run, and what it is made of has to be there.
        prometheus.query(&query)?;
        for metric in metrics(&query) {
            if prometheus.query(&metric)?.is_empty() {
                without.insert(metric, name.clone());
            }
        }
    }
    assert!(without.is_empty(), "no data: {without:#?}");

    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}")?;
    assert!(firing.is_empty(), "{firing:#?}");
    drop(prometheus);
    env.cluster.down()
}
