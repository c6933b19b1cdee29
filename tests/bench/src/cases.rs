//! What is measured, in which order.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::{Children, Cost};
use crate::tools::{Programs, Tool};
use crate::{data, tree};

/// How much data.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sizes {
    large_files: u64,
    large_bytes: u64,
    appended_bytes: u64,
    many_files: u64,
    directories: u64,
}

impl Sizes {
    pub(crate) fn full() -> Sizes {
        Sizes {
            large_files: 2,
            large_bytes: 1 << 30,
            appended_bytes: 1 << 20,
            many_files: 50_000,
            directories: 250,
        }
    }

    pub(crate) fn small() -> Sizes {
        Sizes {
            large_bytes: 10 << 20,
            many_files: 500,
            directories: 10,
            ..Sizes::full()
        }
    }
}

/// The cases in the order of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Open the repository, list its snapshots: what every other case costs at least.
    Open,
    FullLarge,
    Append,
    RestoreLarge,
    FullMany,
    Unchanged,
    RestoreMany,
}

impl Case {
    pub(crate) const ALL: [Case; 7] = [
        Case::Open,
        Case::FullLarge,
        Case::Append,
        Case::RestoreLarge,
        Case::FullMany,
        Case::Unchanged,
        Case::RestoreMany,
    ];

    pub(crate) fn title(self, sizes: &Sizes) -> String {
        let mib = |bytes: u64| match bytes >> 20 {
            mib if mib >= 1024 => format!("{} GiB", mib >> 10),
            mib => format!("{mib} MiB"),
        };
        let Sizes {
            large_files,
            large_bytes,
            appended_bytes,
            many_files,
            ..
        } = sizes;
        let large = mib(*large_bytes);
        match self {
            Case::Open => "open and list snapshots".to_owned(),
            Case::FullLarge => format!("full, {large_files} x {large} random"),
            Case::Append => format!("{} appended to one {large} file", mib(*appended_bytes)),
            Case::RestoreLarge => format!("restore {large_files} x {large}"),
            Case::FullMany => format!("full, {many_files} small files"),
            Case::Unchanged => format!("unchanged, {many_files} small files"),
            Case::RestoreMany => format!("restore {many_files} small files"),
        }
    }
}

/// One measured run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) case: Case,
    pub(crate) tool: Tool,
    pub(crate) round: usize,
    #[serde(flatten)]
    pub(crate) cost: Cost,
    /// Size of the repository afterwards; only where the case writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository_bytes: Option<u64>,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) sizes: Sizes,
    pub(crate) versions: [String; 2],
    pub(crate) runs: Vec<Run>,
}

struct Bench<'a> {
    directory: &'a Path,
    programs: Programs,
    sizes: &'a Sizes,
    children: &'a Children,
    runs: Vec<Run>,
}

/// Measures all cases in `directory`; the tools take turns at going first.
pub(crate) fn run(
    directory: &Path,
    jackline: &Path,
    sizes: &Sizes,
    rounds: usize,
    children: &Children,
) -> Result<Measured> {
    let programs = Programs {
        jackline: jackline.to_owned(),
    };
    let versions = programs.versions()?;
    let mut bench = Bench {
        directory,
        programs,
        sizes,
        children,
        runs: Vec::new(),
    };
    // Both work on copies of one repository, so that nobody wins by weaker keys.
    let init = bench
        .programs
        .command(Tool::Restic, &bench.path("template"), &bench.path("cache"));
    bench.call(init, &["init"])?;
    eprintln!("writing the data");
    data::large(&bench.path("large"), sizes.large_files, sizes.large_bytes)?;
    data::many(&bench.path("many"), sizes.many_files, sizes.directories)?;
    for round in 1..=rounds {
        let mut tools = [Tool::Restic, Tool::Jackline];
        if round % 2 == 0 {
            tools.reverse();
        }
        for tool in tools {
            eprintln!("round {round} of {rounds}: {tool:?}");
            bench.large(tool, round)?;
            bench.many(tool, round)?;
        }
    }
    let runs = bench.runs;
    Ok(Measured {
        sizes: sizes.clone(),
        versions,
        runs,
    })
}

impl Bench<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn large(&mut self, tool: Tool, round: usize) -> Result<()> {
        self.fresh_repository(tool)?;
        self.measure(Case::Open, tool, round, self.directory, &["snapshots"])?;
        let source = self.path("large");
        self.measure(
            Case::FullLarge,
            tool,
            round,
            &source,
            &["backup", "--host=bench", "."],
        )?;
        let grown = source.join("large-0");
        let time = fs::metadata(&grown)?.modified()?;
        let mut file = File::options().write(true).open(&grown)?;
        file.seek(SeekFrom::End(0))?;
        data::Noise::new(round as u64 + 1000).write(&mut file, self.sizes.appended_bytes)?;
        self.measure(
            Case::Append,
            tool,
            round,
            &source,
            &["backup", "--host=bench", "."],
        )?;
        self.restore(Case::RestoreLarge, tool, round, &source)?;
        // The other tool gets the same source.
        file.set_len(self.sizes.large_bytes)?;
        file.set_modified(time)?;
        Ok(())
    }

    fn many(&mut self, tool: Tool, round: usize) -> Result<()> {
        self.fresh_repository(tool)?;
        let source = self.path("many");
        self.measure(
            Case::FullMany,
            tool,
            round,
            &source,
            &["backup", "--host=bench", "."],
        )?;
        self.measure(
            Case::Unchanged,
            tool,
            round,
            &source,
            &["backup", "--host=bench", "."],
        )?;
        self.restore(Case::RestoreMany, tool, round, &source)
    }

    /// A copy of the template, and restic's cache of it.
    fn fresh_repository(&mut self, tool: Tool) -> Result<()> {
        self.remove("repository")?;
        self.remove("cache")?;
        tree::copy(&self.path("template"), &self.path("repository"))?;
        let warm = self
            .programs
            .command(tool, &self.path("repository"), &self.path("cache"));
        self.call(warm, &["snapshots"])
    }

    fn restore(&mut self, case: Case, tool: Tool, round: usize, source: &Path) -> Result<()> {
        let target = self.path("restored");
        let text = target.to_string_lossy().into_owned();
        self.measure(
            case,
            tool,
            round,
            self.directory,
            &["restore", "latest", "--target", &text],
        )?;
        tree::same_entries(source, &target)
            .with_context(|| format!("what {tool:?} restored is not what was backed up"))?;
        self.remove("restored")?;
        self.remove("repository")
    }

    fn measure(
        &mut self,
        case: Case,
        tool: Tool,
        round: usize,
        current: &Path,
        args: &[&str],
    ) -> Result<()> {
        let repository = self.path("repository");
        let mut command = self
            .programs
            .command(tool, &repository, &self.path("cache"));
        command.args(args).current_dir(current);
        let cost = self.children.run(&mut command, &self.path("log"))?;
        let writes = args.first() == Some(&"backup");
        let repository_bytes = if writes {
            Some(tree::size(&repository)?)
        } else {
            None
        };
        self.runs.push(Run {
            case,
            tool,
            round,
            cost,
            repository_bytes,
        });
        Ok(())
    }

    fn call(&self, mut command: Command, args: &[&str]) -> Result<()> {
        self.children
            .run(command.args(args), &self.path("log"))
            .map(drop)
    }

    fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_dir_all(self.path(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {name}"))
            }
            _ => Ok(()),
        }
    }
}
