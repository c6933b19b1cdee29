//! The measurements as a table and as JSON.

use std::fmt::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cases::{Case, Measured, Run};
use crate::measure::median;
use crate::tools::Tool;

/// Medians of one tool in one case.
#[derive(Debug, Clone, Copy)]
struct Medians {
    wall: f64,
    cpu: f64,
    peak: f64,
    repository: f64,
}

fn medians(measured: &Measured, case: Case, tool: Tool) -> Medians {
    let of = |value: fn(&Run) -> f64| {
        let runs = measured
            .runs
            .iter()
            .filter(|run| run.case == case && run.tool == tool);
        median(runs.map(value))
    };
    Medians {
        wall: of(|run| run.cost.wall_seconds),
        cpu: of(|run| run.cost.cpu_seconds),
        peak: of(|run| run.cost.peak_bytes as f64),
        repository: of(|run| run.repository_bytes.unwrap_or_default() as f64),
    }
}

/// Jackline's share of restic's, after each tool's own time to open a repository. `None` where that time
/// is nearly all that was measured.
fn net(measured: &Measured, case: Case) -> Option<f64> {
    let open = |tool| medians(measured, case.open(), tool).wall;
    let net = |tool| medians(measured, case, tool).wall - open(tool);
    (net(Tool::Restic) > 0.2).then(|| net(Tool::Jackline).max(0.0) / net(Tool::Restic))
}

/// Medians side by side, in Markdown.
pub(crate) fn table(measured: &Measured) -> String {
    let mut text = String::new();
    let [restic, jackline] = &measured.versions;
    let _ = writeln!(text, "\n{jackline} beside {restic}\n");
    text.push_str(
        "| case | jackline: wall, CPU, peak | restic: wall, CPU, peak | wall | net | stored | target |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for case in measured.cases() {
        let ours = medians(measured, case, Tool::Jackline);
        let theirs = medians(measured, case, Tool::Restic);
        let side = |m: Medians| {
            let mib = m.peak / f64::from(1 << 20);
            format!("{:.2} s, {:.2} s, {mib:.0} MiB", m.wall, m.cpu)
        };
        let net = net(measured, case).map_or_else(|| "-".into(), |net| format!("{net:.2}"));
        let stored = match (ours.repository, theirs.repository) {
            (_, 0.0) => "-".to_owned(),
            (ours, theirs) => format!("{:.3}", ours / theirs),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.2} | {net} | {stored} | {} |",
            case.title(&measured.sizes),
            side(ours),
            side(theirs),
            ours.wall / theirs.wall.max(1e-3),
            case.target(),
        );
    }
    text.push_str(
        "\nwall, net, stored: jackline / restic; net: without the time to open and list. \
         Bytes stored are to be at most 1.02 times restic's.\n",
    );
    text
}

/// Every run, the medians and the ratios.
pub(crate) fn document(measured: &Measured) -> Result<Value> {
    let cases = measured.cases().into_iter().map(|case| {
        let side = |tool| {
            let Medians {
                wall,
                cpu,
                peak,
                repository,
            } = medians(measured, case, tool);
            json!({
                "wall_seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak,
                "repository_bytes": repository,
            })
        };
        let (ours, theirs) = (
            medians(measured, case, Tool::Jackline),
            medians(measured, case, Tool::Restic),
        );
        json!({
            "case": case,
            "title": case.title(&measured.sizes),
            "jackline": side(Tool::Jackline),
            "restic": side(Tool::Restic),
            "wall_ratio": ours.wall / theirs.wall.max(1e-3),
            "net_wall_ratio": net(measured, case),
        })
    });
    let cases: Vec<Value> = cases.collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut document = serde_json::to_value(measured)?;
    document["medians"] = json!(cases);
    document["cores"] = json!(cores);
    document["date"] = json!(jiff::Timestamp::now().to_string());
    Ok(document)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{Sizes, Source, Step};
    use crate::measure::Cost;

    const CASES: [Case; 3] = [
        Case::Open,
        Case::FullLarge,
        Case::Incremental(Source::Tiny, Step::Unchanged),
    ];

    fn measured() -> Measured {
        let mut runs = Vec::new();
        for case in CASES {
            for (tool, wall) in [(Tool::Restic, 2.0), (Tool::Jackline, 1.0)] {
                let wall_seconds = if case == case.open() {
                    wall / 4.0
                } else {
                    wall
                };
                let cost = Cost {
                    wall_seconds,
                    cpu_seconds: wall,
                    peak_bytes: 64 << 20,
                };
                runs.push(Run {
                    case,
                    tool,
                    round: 1,
                    cost,
                    repository_bytes: Some(100),
                });
            }
        }
        Measured {
            sizes: Sizes::full(),
            versions: ["restic 0".into(), "jackline 0".into()],
            runs,
        }
    }

    #[test]
    fn a_table_shows_both_and_their_ratio() {
        let text = table(&measured());
        let line = text
            .lines()
            .find(|line| line.starts_with("| full, 2 x 1 GiB random |"))
            .unwrap();
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[4..7], ["0.50", "0.50", "1.000"], "{line}");
        let columns = |line: &str| line.matches('|').count();
        let mut rows = text.lines().filter(|line| line.starts_with('|'));
        assert!(rows.all(|row| columns(row) == columns(line)), "{text}");
    }

    #[test]
    fn the_document_holds_every_run() {
        let document = document(&measured()).unwrap();
        assert_eq!(document["runs"].as_array().unwrap().len(), 2 * CASES.len());
        assert_eq!(document["runs"][0]["tool"], "restic");
        assert_eq!(document["medians"][1]["wall_ratio"], 0.5);
    }
}
