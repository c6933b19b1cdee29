//! `repair`: what is lost, and what comes of the rest.

use std::process::ExitCode;

use jackline_repository::RepairOptions;

use super::Session;
use crate::args::RepairCommand;
use crate::exit::Exit;
use crate::output::{self, Bar};

pub(super) async fn run(session: &Session, command: RepairCommand) -> Result<ExitCode, Exit> {
    match command {
        RepairCommand::Index {
            read_all_packs,
            dry_run,
        } => {
            let options = RepairOptions {
                read_all_packs,
                dry_run,
                ..RepairOptions::default()
            };
            index(session, options).await?;
        }
        RepairCommand::Snapshots { forget, dry_run } => {
            let options = RepairOptions {
                forget,
                dry_run,
                ..RepairOptions::default()
            };
            snapshots(session, options).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn index(session: &Session, options: RepairOptions) -> Result<(), Exit> {
    let repository = session.open().await?;
    let bar = Bar::new("repair", session.json);
    let report = repository
        .repair_index(options, &bar, &session.cancel)
        .await?;
    drop(bar);
    if !session.json {
        for pack in &report.missing {
            output::note(&format!("{pack} is missing"));
        }
        for line in report.unreadable.iter().chain(&report.damaged) {
            output::note(line);
        }
    }
    let text = match (report.changed, options.dry_run) {
        (false, _) => "the index is what the packs say\n".to_owned(),
        (true, true) => format!("the index would list {} packs\n", report.packs),
        (true, false) => format!("wrote the index anew: it lists {} packs\n", report.packs),
    };
    session.print("repair_index", &report, &text)
}

async fn snapshots(session: &Session, options: RepairOptions) -> Result<(), Exit> {
    let repository = session.open().await?;
    let bar = Bar::new("repair", session.json);
    let report = repository
        .repair_snapshots(options, &bar, &session.cancel)
        .await?;
    drop(bar);
    output::problems(&report.lost, "repair", session.json);
    output::problems(&report.problems, "repair", session.json);
    let mut text = String::new();
    for repaired in &report.repaired {
        let new = match repaired.new {
            Some(new) => format!("what is left of it is {}", new.short()),
            None => "it would be repaired".to_owned(),
        };
        text += &format!("snapshot {} is damaged: {new}\n", repaired.old.short());
    }
    text += &format!(
        "of {} snapshots {} are damaged, {} lost: {} files shortened, {} directories emptied\n",
        report.snapshots,
        report.repaired.len(),
        report.lost.len(),
        report.files_shortened,
        report.dirs_emptied
    );
    session.print("repair_snapshots", &report, &text)
}
