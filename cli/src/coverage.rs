//! `jackline coverage`: the verdict on every volume, as the controller keeps it.

use std::process::ExitCode;

use jackline_crds::jackline::{BackupCoverage, CoverageCounts, Verdict, VolumeVerdict};
use jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::args::{CoverageArgs, CoverageFormat};
use crate::exit::{Exit, chain};
use crate::{cluster, output, table};

const HEAD: [&str; 7] = [
    "NAMESPACE",
    "CLAIM OR POD/VOLUME",
    "VERDICT",
    "POLICY",
    "LAST BACKUP",
    "SIZE",
    "REASON",
];

/// Objects of one page of a listing.
const PAGE: u32 = 200;

pub(crate) async fn run(args: CoverageArgs) -> Result<ExitCode, Exit> {
    let CoverageArgs {
        namespace,
        all_namespaces,
        output,
        strict,
    } = args;
    let client = cluster::client().await?;
    let api: Api<BackupCoverage> = match (all_namespaces, namespace) {
        (true, _) => Api::all(client),
        (false, Some(namespace)) => Api::namespaced(client, &namespace),
        (false, None) => Api::default_namespaced(client),
    };
    let mut verdicts = collect(&api).await?;
    verdicts.sort_by(|(a, x), (b, y)| (a, name(x)).cmp(&(b, name(y))));
    match output {
        CoverageFormat::Table => {
            let width = table::terminal_width();
            output::print(&text(&verdicts, Timestamp::now(), width))?;
        }
        CoverageFormat::Json => output::print(&format!("{:#}\n", list(&verdicts)?))?,
        CoverageFormat::Yaml => {
            output::print(&serde_saphyr::to_string(&list(&verdicts)?).map_err(Exit::failed)?)?;
        }
    }
    let open = verdicts
        .iter()
        .filter(|(_, volume)| !is_settled(volume.verdict))
        .count();
    if strict && open > 0 {
        return Err(Exit::incomplete(format!(
            "{open} volumes are not protected"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// All verdicts with their namespaces.
async fn collect(api: &Api<BackupCoverage>) -> Result<Vec<(String, VolumeVerdict)>, Exit> {
    let mut verdicts = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await.map_err(explain)?;
        for coverage in list.items {
            let namespace = coverage.metadata.namespace.unwrap_or_default();
            let volumes = coverage.status.unwrap_or_default().volumes;
            verdicts.extend(
                volumes
                    .into_iter()
                    .map(|volume| (namespace.clone(), volume)),
            );
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(verdicts),
        }
    }
}

fn explain(error: kube::Error) -> Exit {
    match error {
        kube::Error::Api(status) if status.code == 404 => Exit::failed(
            "the cluster does not know BackupCoverage (jackline.dev): is Jackline installed?",
        ),
        error => Exit::failed(chain(&error)),
    }
}

/// Nothing is left to do about this volume.
fn is_settled(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Protected | Verdict::Exempt)
}

/// The claim, or pod and volume where there is none.
fn name(volume: &VolumeVerdict) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_else(|| "-".to_owned());
    match &volume.claim {
        Some(claim) => claim.clone(),
        None => format!("{}/{}", part(&volume.pod), part(&volume.volume)),
    }
}

fn list(verdicts: &[(String, VolumeVerdict)]) -> Result<Value, Exit> {
    let items = verdicts.iter().map(|(namespace, volume)| {
        let mut value = serde_json::to_value(volume).map_err(Exit::failed)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("namespace".to_owned(), json!(namespace));
        }
        Ok(value)
    });
    let volumes = items.collect::<Result<Vec<_>, Exit>>()?;
    let mut counts = CoverageCounts::default();
    verdicts
        .iter()
        .for_each(|(_, volume)| count(&mut counts, volume.verdict));
    Ok(json!({"summary": counts, "volumes": volumes}))
}

fn text(verdicts: &[(String, VolumeVerdict)], now: Timestamp, width: Option<usize>) -> String {
    let rows: Vec<_> = verdicts
        .iter()
        .map(|(namespace, v)| row(namespace, v, now))
        .collect();
    let mut counts = CoverageCounts::default();
    verdicts
        .iter()
        .for_each(|(_, volume)| count(&mut counts, volume.verdict));
    format!(
        "{}\n{}\n",
        table::render(&HEAD, &rows, width),
        summary(verdicts.len(), &counts)
    )
}

fn row(namespace: &str, volume: &VolumeVerdict, now: Timestamp) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let reason = match (&volume.reason, &volume.message) {
        (Some(reason), Some(message)) => format!("{reason}: {message}"),
        (reason, message) => reason
            .clone()
            .or_else(|| message.clone())
            .unwrap_or_default(),
    };
    let size = volume
        .bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .map(table::bytes);
    let last = volume
        .last_good_time
        .as_ref()
        .map(|time| format!("{} ago", age(time.0, now)));
    vec![
        namespace.to_owned(),
        name(volume),
        volume.verdict.as_str().to_owned(),
        or_dash(volume.policy.clone()),
        or_dash(last),
        or_dash(size),
        reason.replace('\n', " "),
    ]
}

/// The largest unit that fits: `12s`, `5m`, `3h`, `2d`.
fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(time.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn count(counts: &mut CoverageCounts, verdict: Verdict) {
    let field = match verdict {
        Verdict::Protected => &mut counts.protected,
        Verdict::Stale => &mut counts.stale,
        Verdict::Unprotected => &mut counts.unprotected,
        Verdict::Exempt => &mut counts.exempt,
        Verdict::Conflict => &mut counts.conflict,
        Verdict::CannotBackUp => &mut counts.cannot_back_up,
        // Of a newer controller: shown in its row, and never counted as protected.
        Verdict::Unknown => &mut counts.unprotected,
    };
    *field += 1;
    if verdict != Verdict::Exempt {
        counts.selected += 1;
    }
}

fn summary(volumes: usize, counts: &CoverageCounts) -> String {
    let CoverageCounts {
        protected,
        selected,
        ..
    } = counts;
    let rest = [
        (counts.stale, "stale"),
        (counts.unprotected, "unprotected"),
        (counts.conflict, "in conflict"),
        (counts.cannot_back_up, "cannot be backed up"),
        (counts.exempt, "exempt"),
    ];
    let rest = rest.iter().filter(|(count, _)| *count > 0);
    let rest: Vec<String> = rest
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let mut line = format!("{volumes} volumes: {protected} of {selected} protected");
    for part in rest {
        line.push_str(", ");
        line.push_str(&part);
    }
    line
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn volumes() -> Vec<(String, VolumeVerdict)> {
        let now = Timestamp::UNIX_EPOCH;
        let protected = VolumeVerdict {
            claim: Some("logs".into()),
            verdict: Verdict::Protected,
            policy: Some("everything".into()),
            last_good_time: Some(Time(now)),
            bytes: Some(3 << 20),
            ..Default::default()
        };
        let open = VolumeVerdict {
            pod: Some("web-0".into()),
            volume: Some("cache".into()),
            verdict: Verdict::Unprotected,
            reason: Some("NoBackupYet".into()),
            message: Some("the first backup is due\nsoon".into()),
            ..Default::default()
        };
        let exempt = VolumeVerdict {
            verdict: Verdict::Exempt,
            ..protected.clone()
        };
        vec![
            ("a".into(), protected),
            ("a".into(), open),
            ("b".into(), exempt),
        ]
    }

    #[test]
    fn a_table_has_a_line_for_each_volume_and_a_summary() {
        let text = text(&volumes(), "1970-01-01T03:00:00Z".parse().unwrap(), None);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("NAMESPACE  CLAIM OR POD/VOLUME  VERDICT"),
            "{text}"
        );
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(
            words,
            [
                "a",
                "logs",
                "Protected",
                "everything",
                "3h",
                "ago",
                "3.00",
                "MiB"
            ]
        );
        assert!(lines[2].contains("web-0/cache"), "{text}");
        assert!(
            lines[2].ends_with("NoBackupYet: the first backup is due soon"),
            "{text}"
        );
        assert_eq!(
            lines[5],
            "3 volumes: 1 of 2 protected, 1 unprotected, 1 exempt"
        );
    }

    #[test]
    fn programs_get_every_field_and_the_counts() {
        let list = list(&volumes()).unwrap();
        assert_eq!(list["summary"]["selected"], 2);
        assert_eq!(list["volumes"][1]["namespace"], "a");
        assert_eq!(list["volumes"][1]["verdict"], "Unprotected");
        assert_eq!(list["volumes"][0]["lastGoodTime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn an_age_is_shown_in_its_largest_unit() {
        let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
        for (time, shown) in [
            ("2026-01-09T23:59:48Z", "12s"),
            ("2026-01-09T23:00:00Z", "60m"),
            ("2026-01-08T00:00:00Z", "2d"),
            ("2026-01-11T00:00:00Z", "0s"),
        ] {
            assert_eq!(age(time.parse().unwrap(), now), shown);
        }
    }
}
