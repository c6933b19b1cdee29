//! `repair`: what is lost, and what comes of the rest.

use std::process::ExitCode;

use jackline_repository::{Id, RepairOptions};

use super::{Session, snapshots};
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
        RepairCommand::Packs { ids, dry_run } => {
            let options = RepairOptions {
                dry_run,
                ..RepairOptions::default()
            };
            packs(session, &ids, options).await?;
        }
        RepairCommand::Snapshots {
            ids,
            forget,
            dry_run,
        } => {
            let options = RepairOptions {
                forget,
                dry_run,
                ..RepairOptions::default()
            };
            damaged_snapshots(session, &ids, options).await?;
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

async fn packs(session: &Session, ids: &[Id], options: RepairOptions) -> Result<(), Exit> {
    let repository = session.open().await?;
    let bar = Bar::new("repair", session.json);
    let report = repository
        .repair_packs(ids, options, &bar, &session.cancel)
        .await?;
    drop(bar);
    if !session.json {
        for line in &report.damaged {
            output::note(line);
        }
        for blob in &report.lost {
            output::note(&format!("{blob} is lost"));
        }
    }
    let would = match options.dry_run {
        true => "would be",
        false => "are",
    };
    let text = format!(
        "of {} packs {} are damaged: {} blobs {would} stored anew, {} are lost\n",
        report.packs,
        report.damaged.len(),
        report.blobs_saved,
        report.lost.len(),
    );
    session.print("repair_packs", &report, &text)
}

async fn damaged_snapshots(
    session: &Session,
    ids: &[String],
    options: RepairOptions,
) -> Result<(), Exit> {
    let repository = session.open().await?;
    let wanted = snapshots::resolve_all(&repository, ids).await?;
    let bar = Bar::counting("repair", session.json);
    let report = repository
        .repair_snapshots(&wanted, options, &bar, &session.cancel)
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
