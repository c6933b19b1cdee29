//! Sources on disk that change from backup to backup. Jackline works within a limit of memory.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::cases::{Bench, Case, Source, Step};
use crate::tools::{Repository, Tool};
use crate::{data, tree};

/// What a node may give for two million files.
pub(crate) const MEMORY: u64 = 512 << 20;

const TOOLS: [Tool; 2] = [Tool::Restic, Tool::Jackline];

/// Each tool keeps its repository of a source through all steps. `rounds`: how often opening and what is unchanged are
/// measured; everything else is measured once.
pub(crate) fn run(bench: &mut Bench<'_>, rounds: usize) -> Result<()> {
    use Step::{AllDeleted, FileMore, LargeFileMore, New, SeveralDeleted, Unchanged};
    for (source, steps) in [
        (Source::Tiny, &[New, Unchanged][..]),
        (Source::Wide, &[New, Unchanged]),
        (
            Source::Plenty,
            &[
                New,
                Unchanged,
                FileMore,
                LargeFileMore,
                SeveralDeleted,
                AllDeleted,
            ],
        ),
        (
            Source::One,
            &[New, Unchanged, FileMore, LargeFileMore, AllDeleted],
        ),
    ] {
        for tool in TOOLS {
            tree::copy(&bench.path("template"), &repository(bench, tool))?;
        }
        if source == Source::Tiny {
            for round in 1..=rounds {
                for tool in TOOLS {
                    measure(bench, Case::Open, tool, round, &["snapshots"])?;
                }
            }
        }
        for step in steps {
            change(bench, source, *step)?;
            let case = Case::Incremental(source, *step);
            let rounds = if *step == Unchanged { rounds } else { 1 };
            for round in 1..=rounds {
                for tool in TOOLS {
                    eprintln!(
                        "{}, round {round} of {rounds}: {tool:?}",
                        case.title(bench.sizes)
                    );
                    measure(bench, case, tool, round, &["backup", "--host=bench", "."])?;
                }
            }
        }
        let ours = Repository::directory(&repository(bench, Tool::Jackline));
        bench
            .call(Tool::Restic, &ours, Path::new("."), &["check"])
            .context("what Jackline left")?;
        for name in ["Restic", "Jackline", "source", "cache"] {
            bench.remove(name)?;
        }
    }
    Ok(())
}

fn repository(bench: &Bench<'_>, tool: Tool) -> std::path::PathBuf {
    bench.path(&format!("{tool:?}"))
}

fn measure(
    bench: &mut Bench<'_>,
    case: Case,
    tool: Tool,
    round: usize,
    args: &[&str],
) -> Result<()> {
    let directory = repository(bench, tool);
    let source = match case {
        Case::Incremental(..) => bench.path("source"),
        _ => bench.path("template"),
    };
    let cost = bench.cost(tool, &Repository::directory(&directory), &source, args)?;
    let bytes = match case {
        Case::Incremental(..) => Some(tree::size(&directory)?),
        _ => None,
    };
    bench.note(case, tool, round, cost, bytes);
    Ok(())
}

/// Brings the source to what the step says.
fn change(bench: &Bench<'_>, source: Source, step: Step) -> Result<()> {
    let (sizes, directory) = (bench.sizes, bench.path("source"));
    let more = |name: &str, size| {
        let mut file = File::create(directory.join(name))?;
        data::Noise::new(size).write(&mut file, size)
    };
    match (step, source) {
        (Step::New, Source::Tiny) => {
            data::tiny(&directory, sizes.tiny_files, sizes.tiny_directories)
        }
        (Step::New, Source::Wide) => data::tiny(&directory, sizes.wide_files, 1),
        (Step::New, Source::Plenty) => {
            data::equal(&directory, sizes.plenty_files, sizes.plenty_bytes)
        }
        (Step::New, Source::One) => data::large(&directory, 1, sizes.one_bytes),
        (Step::Unchanged, _) => Ok(()),
        (Step::FileMore, _) => more("more", sizes.plenty_bytes),
        (Step::LargeFileMore, _) => more("large", sizes.one_bytes / 8),
        (Step::SeveralDeleted, _) => {
            let entries = fs::read_dir(&directory)?.step_by(100);
            for entry in entries {
                let entry = entry?;
                fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()))?;
            }
            Ok(())
        }
        (Step::AllDeleted, _) => {
            bench.remove("source")?;
            // restic refuses a snapshot of nothing at all.
            Ok(fs::create_dir_all(directory.join("empty"))?)
        }
    }
}
