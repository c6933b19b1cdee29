//! `jackline doctor`: what of an installation is as it should be, and what to do about the rest.

use std::process::ExitCode;

use jackline_crds::foreign;
use jackline_crds::jackline::{BackupPolicy, ClusterBackupPolicy, PolicyStatus};
use jackline_crds::names::{CONTROLLER, NODE_AGENT, NODE_AGENT_LABEL, REPOSITORY_SECRET};
use jackline_crds::velero::{
    BackupRepository, BackupStorageLocation, LocationPhase, RepositoryPhase,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde_json::json;

use crate::args::{DoctorArgs, Format};
use crate::exit::{Exit, chain};
use crate::{output, table};

/// Kinds that are there for Velero's client and for old objects alone.
const UNUSED: &[&str] = &[
    "datadownloads.velero.io",
    "datauploads.velero.io",
    "resticrepositories.velero.io",
    "volumesnapshotlocations.velero.io",
];

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, but somebody should look.
    Warning,
    /// Backups or restores do not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
}

fn finding(check: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    let detail = detail.into();
    Finding {
        check,
        verdict,
        detail,
    }
}

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode, Exit> {
    let client = crate::cluster::client().await?;
    let mut findings = Vec::new();
    for look in [
        kinds(&client).await,
        controller(&client, &args.namespace).await,
        agents(&client, &args.namespace).await,
        veleros(&client, &args.namespace).await,
        key(&client, &args.namespace).await,
        locations(&client, &args.namespace).await,
        repositories(&client, &args.namespace).await,
        policies(&client).await,
    ] {
        findings.extend(look);
    }
    let worst = findings.iter().map(|finding| finding.verdict).max();
    match args.output {
        Format::Text => output::print(&text(&findings, table::terminal_width()))?,
        Format::Json => output::print(&format!("{:#}\n", json!({"findings": findings})))?,
    }
    match worst {
        Some(Verdict::Problem) => Ok(ExitCode::FAILURE),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn text(findings: &[Finding], width: Option<usize>) -> String {
    let row = |finding: &Finding| {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "WARNING",
            Verdict::Problem => "PROBLEM",
        };
        vec![
            finding.check.to_owned(),
            verdict.to_owned(),
            finding.detail.clone(),
        ]
    };
    let rows: Vec<_> = findings.iter().map(row).collect();
    // What to do stands at the end of a line: where it is cut, the lines below give it whole.
    let mut text = table::render(&["CHECK", "VERDICT", "DETAIL"], &rows, width);
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict > Verdict::Ok);
    for finding in bad {
        text.push_str(&format!("\n{}: {}\n", finding.check, finding.detail));
    }
    text
}

/// What could not be read is a finding too.
fn unread(check: &'static str, error: &kube::Error) -> Vec<Finding> {
    let detail = format!("cannot be read: {}", chain(error));
    vec![finding(check, Verdict::Problem, detail)]
}

async fn kinds(client: &Client) -> Vec<Finding> {
    const CHECK: &str = "custom kinds";
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = match api.list_metadata(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(error) => return unread(CHECK, &error),
    };
    let found: Vec<_> = found.iter().map(ResourceExt::name_any).collect();
    let wanted = jackline_crds::yaml::definitions();
    let wanted = wanted.iter().map(ResourceExt::name_any);
    let missing: Vec<_> = wanted
        .filter(|name| !found.contains(name) && !UNUSED.contains(&name.as_str()))
        .collect();
    if missing.is_empty() {
        return vec![finding(CHECK, Verdict::Ok, "all are there")];
    }
    let detail = format!("missing: {}; apply deploy/", missing.join(", "));
    vec![finding(CHECK, Verdict::Problem, detail)]
}

async fn controller(client: &Client, namespace: &str) -> Vec<Finding> {
    const CHECK: &str = "controller";
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let found = match api.get_opt(CONTROLLER).await {
        Ok(found) => found,
        Err(error) => return unread(CHECK, &error),
    };
    let Some(status) = found.map(|found| found.status.unwrap_or_default()) else {
        let detail = format!("there is no Deployment {CONTROLLER} in namespace {namespace}");
        return vec![finding(CHECK, Verdict::Problem, detail)];
    };
    let (ready, all) = (
        status.ready_replicas.unwrap_or_default(),
        status.replicas.unwrap_or_default(),
    );
    let verdict = match ready {
        0 => Verdict::Problem,
        _ if ready < all => Verdict::Warning,
        _ => Verdict::Ok,
    };
    vec![finding(
        CHECK,
        verdict,
        format!("{ready} of {all} replicas are ready"),
    )]
}

async fn agents(client: &Client, namespace: &str) -> Vec<Finding> {
    const CHECK: &str = "node agents";
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let found = match api.get_opt(NODE_AGENT).await {
        Ok(found) => found,
        Err(error) => return unread(CHECK, &error),
    };
    let Some(status) = found.map(|found| found.status.unwrap_or_default()) else {
        let detail = format!("there is no DaemonSet {NODE_AGENT} in namespace {namespace}");
        return vec![finding(CHECK, Verdict::Problem, detail)];
    };
    let (ready, all) = (status.number_ready, status.desired_number_scheduled);
    let verdict = match ready {
        0 => Verdict::Problem,
        _ if ready < all => Verdict::Warning,
        _ => Verdict::Ok,
    };
    let (label, agent) = NODE_AGENT_LABEL;
    let mut detail = format!("{ready} of {all} are ready");
    if ready < all {
        detail.push_str(&format!(
            ": volumes on the other nodes are not backed up; see kubectl -n {namespace} get pods -l {label}={agent} -o wide"
        ));
    }
    vec![finding(CHECK, verdict, detail)]
}

/// What of Velero runs in Jackline's namespace.
struct Veleros {
    /// The controller leaves backups and restores to a Velero.
    beside: bool,
    pods: Vec<(Pod, foreign::Role)>,
}

impl Veleros {
    async fn find(client: &Client, namespace: &str) -> Result<Self, kube::Error> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let controllers: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        let pods = pods.list(&ListParams::default()).await?.items;
        let controller = controllers.get_opt(CONTROLLER).await?;
        let role = |pod: Pod| foreign::role(&pod).map(|role| (pod, role));
        Ok(Self {
            beside: controller.as_ref().is_some_and(is_beside_velero),
            pods: pods.into_iter().filter_map(role).collect(),
        })
    }

    fn findings(&self) -> Vec<Finding> {
        const CHECK: &str = "no other server";
        let server = |(_, role): &(Pod, foreign::Role)| *role == foreign::Role::Server;
        match self.pods.iter().any(server) {
            true if self.beside => {
                let detail = "a Velero moves the data, as --engine velero says";
                return vec![finding(CHECK, Verdict::Ok, detail)];
            }
            false if self.beside => {
                let detail = "the controller runs with --engine velero, and no server of Velero runs: nothing is backed up or restored";
                return vec![finding(CHECK, Verdict::Problem, detail)];
            }
            _ => {}
        }
        if self.pods.is_empty() {
            let detail = "no Velero runs in the namespace";
            return vec![finding(CHECK, Verdict::Ok, detail)];
        }
        let warning = |(pod, role): &(Pod, foreign::Role)| foreign::warning(pod, *role);
        let warnings = self.pods.iter().map(warning);
        warnings
            .map(|warning| finding(CHECK, Verdict::Problem, warning))
            .collect()
    }

    /// Why Jackline restores nothing, if that is so.
    fn obstacle(&self) -> Option<String> {
        if self.beside {
            return Some("a Velero moves the data, as --engine velero says: restore with `velero restore create`".to_owned());
        }
        let (pod, role) = self.pods.first()?;
        Some(foreign::warning(pod, *role))
    }
}

async fn veleros(client: &Client, namespace: &str) -> Vec<Finding> {
    match Veleros::find(client, namespace).await {
        Ok(veleros) => veleros.findings(),
        Err(error) => unread("no other server", &error),
    }
}

/// Refuses what Jackline would not do in this namespace because of a Velero.
pub(crate) async fn alone(client: &Client, namespace: &str) -> Result<(), Exit> {
    match Veleros::find(client, namespace).await {
        Ok(veleros) => veleros
            .obstacle()
            .map_or(Ok(()), |why| Err(Exit::failed(why))),
        // Whoever may restore into a claim need not see the pods of Jackline.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(error) => Err(Exit::failed(chain(&error))),
    }
}

/// Whether the controller leaves backups and restores to a Velero.
fn is_beside_velero(controller: &Deployment) -> bool {
    let spec = controller
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let containers = spec
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    containers.iter().any(|container| {
        let args = container.args.as_deref().unwrap_or_default();
        let mut env = container.env.iter().flatten();
        args.iter().any(|arg| arg == "--engine=velero")
            || args.windows(2).any(|pair| pair == ["--engine", "velero"])
            || env
                .any(|set| set.name == "JACKLINE_ENGINE" && set.value.as_deref() == Some("velero"))
    })
}

async fn key(client: &Client, namespace: &str) -> Vec<Finding> {
    const CHECK: &str = "repository key";
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    // The key itself is of no concern here.
    let found = match api.get_metadata_opt(REPOSITORY_SECRET).await {
        Ok(found) => found,
        Err(error) => return unread(CHECK, &error),
    };
    vec![match found {
        Some(_) => finding(
            CHECK,
            Verdict::Ok,
            format!("Secret {REPOSITORY_SECRET}; keep a copy outside the cluster"),
        ),
        None => finding(
            CHECK,
            Verdict::Warning,
            format!(
                "there is no Secret {REPOSITORY_SECRET} yet; it is made with the first repository"
            ),
        ),
    }]
}

async fn locations(client: &Client, namespace: &str) -> Vec<Finding> {
    const CHECK: &str = "location";
    let api: Api<BackupStorageLocation> = Api::namespaced(client.clone(), namespace);
    let found = match api.list(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(error) => return unread(CHECK, &error),
    };
    if found.is_empty() {
        let detail = "there is no BackupStorageLocation: nothing says where backups go";
        return vec![finding(CHECK, Verdict::Problem, detail)];
    }
    let mut findings: Vec<_> = found
        .iter()
        .map(|location| {
            let status = location.status.clone().unwrap_or_default();
            let name = location.name_any();
            match status.phase {
                Some(LocationPhase::Available) => match status.message {
                    None => finding(CHECK, Verdict::Ok, format!("{name} is Available")),
                    Some(known) => finding(
                        CHECK,
                        Verdict::Warning,
                        format!("{name} is Available; {known}"),
                    ),
                },
                Some(LocationPhase::Unavailable) => {
                    let why = status.message.unwrap_or_default();
                    finding(
                        CHECK,
                        Verdict::Problem,
                        format!("{name} is Unavailable: {why}"),
                    )
                }
                _ => finding(
                    CHECK,
                    Verdict::Warning,
                    format!("{name} was not looked at yet"),
                ),
            }
        })
        .collect();
    if !found.iter().any(|location| location.spec.default) {
        let detail = "none is the default: backups that name no location are refused";
        findings.push(finding(CHECK, Verdict::Warning, detail));
    }
    findings
}

async fn repositories(client: &Client, namespace: &str) -> Vec<Finding> {
    const CHECK: &str = "repositories";
    let api: Api<BackupRepository> = Api::namespaced(client.clone(), namespace);
    let found = match api.list(&ListParams::default()).await {
        Ok(found) => found.items,
        Err(error) => return unread(CHECK, &error),
    };
    let bad: Vec<_> = found
        .iter()
        .filter_map(|repository| {
            let status = repository.status.clone().unwrap_or_default();
            let why = status.message.unwrap_or_default();
            let detail = format!("{} is not ready: {why}", repository.name_any());
            (status.phase == Some(RepositoryPhase::NotReady))
                .then(|| finding(CHECK, Verdict::Problem, detail))
        })
        .collect();
    if bad.is_empty() {
        let detail = format!("{}, none with a fault", found.len());
        return vec![finding(CHECK, Verdict::Ok, detail)];
    }
    bad
}

async fn policies(client: &Client) -> Vec<Finding> {
    const CHECK: &str = "policies";
    let list = ListParams::default();
    let cluster: Api<ClusterBackupPolicy> = Api::all(client.clone());
    let namespaced: Api<BackupPolicy> = Api::all(client.clone());
    let (cluster, namespaced) = match (cluster.list(&list).await, namespaced.list(&list).await) {
        (Ok(cluster), Ok(namespaced)) => (cluster.items, namespaced.items),
        (Err(error), _) | (_, Err(error)) => return unread(CHECK, &error),
    };
    let cluster = cluster
        .iter()
        .map(|policy| (policy.name_any(), &policy.status));
    let namespaced = namespaced.iter().map(|policy| {
        let namespace = policy.namespace().unwrap_or_default();
        (format!("{namespace}/{}", policy.name_any()), &policy.status)
    });
    let all: Vec<_> = cluster.chain(namespaced).collect();
    let bad: Vec<_> = all
        .iter()
        .filter_map(|(name, status)| {
            let why = not_ready(status.as_ref()?)?;
            Some(finding(
                CHECK,
                Verdict::Problem,
                format!("{name} is not ready: {why}"),
            ))
        })
        .collect();
    if bad.is_empty() {
        let detail = format!("{}, none refused", all.len());
        return vec![finding(CHECK, Verdict::Ok, detail)];
    }
    bad
}

fn not_ready(status: &PolicyStatus) -> Option<String> {
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    (ready.status == "False").then(|| format!("{}: {}", ready.reason, ready.message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_velero_keeps_jackline_from_restoring() {
        let pod = |program: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "velero"}, "status": {"phase": "Running"},
                "spec": {"containers": [{"name": "velero", "image": "x", "command": [program], "args": ["server"]}]}}))
            .unwrap()
        };
        let veleros = |beside, program: &str| {
            let pod = pod(program);
            let role = foreign::role(&pod);
            let pods = role.map(|role| (pod, role)).into_iter().collect();
            Veleros { beside, pods }.obstacle().unwrap_or_default()
        };
        assert_eq!(veleros(false, "/other"), "");
        assert!(veleros(false, "/velero").contains("scale the Deployment velero to zero"));
        assert!(veleros(true, "/velero").contains("velero restore create"));
        assert!(veleros(true, "/other").contains("--engine velero"));
    }

    #[test]
    fn what_is_wrong_is_said_whole_below_the_table() {
        let long = "a".repeat(100);
        let findings = [
            finding("controller", Verdict::Ok, "2 of 2 replicas are ready"),
            finding("location", Verdict::Problem, &*long),
        ];
        let text = text(&findings, Some(60));
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("CHECK"), "{text}");
        assert!(
            lines[2].ends_with('…') && lines[2].chars().count() <= 60,
            "{text}"
        );
        assert_eq!(lines[4], format!("location: {long}"));
    }

    #[test]
    fn a_controller_beside_a_velero_is_told_by_its_settings() {
        let beside = |container: serde_json::Value| {
            let template = json!({"spec": {"containers": [container]}});
            let spec = json!({"selector": {}, "template": template});
            is_beside_velero(&serde_json::from_value(json!({"spec": spec})).unwrap())
        };
        let env = |value: &str| json!({"name": "c", "env": [{"name": "JACKLINE_ENGINE", "value": value}]});
        assert!(beside(env("velero")));
        assert!(beside(json!({"name": "c", "args": ["--engine", "velero"]})));
        assert!(beside(json!({"name": "c", "args": ["--engine=velero"]})));
        assert!(!beside(env("builtin")));
        assert!(!beside(json!({"name": "c"})));
    }
}
