//! What is measured, in which order.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use jackline_faults::DelayLine;
use jackline_test_cluster::Minio;
use serde::Serialize;

use crate::measure::{Children, Cost};
use crate::tools::{Programs, Repository, Tool};
use crate::{data, tree};

const BUCKET: &str = "bench";

/// How much data.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sizes {
    pub(crate) large_files: u64,
    pub(crate) large_bytes: u64,
    pub(crate) appended_bytes: u64,
    pub(crate) many_files: u64,
    pub(crate) directories: u64,
    pub(crate) snapshots: u64,
    pub(crate) round_trip_ms: u64,
    pub(crate) tiny_files: u64,
    pub(crate) tiny_directories: u64,
    pub(crate) wide_files: u64,
    pub(crate) plenty_files: u64,
    pub(crate) plenty_bytes: u64,
    pub(crate) one_bytes: u64,
}

impl Sizes {
    pub(crate) fn full() -> Sizes {
        Sizes {
            large_files: 2,
            large_bytes: 1 << 30,
            appended_bytes: 1 << 20,
            many_files: 50_000,
            directories: 250,
            snapshots: 20,
            round_trip_ms: 20,
            tiny_files: 2_000_000,
            tiny_directories: 2_000,
            wide_files: 200_000,
            plenty_files: 100_000,
            plenty_bytes: 100 << 10,
            one_bytes: 10 << 30,
        }
    }

    pub(crate) fn small() -> Sizes {
        Sizes {
            large_bytes: 10 << 20,
            many_files: 500,
            directories: 10,
            tiny_files: 20_000,
            tiny_directories: 20,
            wide_files: 2_000,
            plenty_files: 1_000,
            one_bytes: 20 << 20,
            ..Sizes::full()
        }
    }
}

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
    /// Give back what half of the snapshots used.
    Prune,
    /// The same as `Open`, with the repository in S3.
    OpenRemote,
    FullRemote,
    UnchangedRemote,
    /// A backup of a source that changes from one to the next.
    Incremental(Source, Step),
}

/// A source on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// So many files of 16 bytes that what is known of each decides, in many directories.
    Tiny,
    /// Files of 16 bytes in a single directory.
    Wide,
    /// Files of a common size.
    Plenty,
    /// A single file.
    One,
}

/// What happened to a source before it was backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    New,
    Unchanged,
    FileMore,
    LargeFileMore,
    SeveralDeleted,
    AllDeleted,
}

impl Case {
    /// What this case costs at least.
    pub(crate) fn open(self) -> Case {
        match self {
            Case::OpenRemote | Case::FullRemote | Case::UnchangedRemote => Case::OpenRemote,
            _ => Case::Open,
        }
    }

    /// What is aimed at: the net ratio and the peak, unless it says otherwise.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Case::Open => "wall <= 0.70",
            Case::OpenRemote => "-",
            Case::FullLarge => "<= 0.28, 128 MiB",
            Case::Append => "<= 0.25, 128 MiB",
            Case::RestoreLarge => "<= 0.30, 128 MiB",
            Case::FullMany => "<= 0.40, 128 MiB",
            Case::Unchanged => "<= 0.20, 96 MiB",
            Case::RestoreMany => "<= 0.45, 128 MiB",
            Case::Prune => "<= 0.50, 128 MiB",
            Case::FullRemote => "<= 0.65, 160 MiB",
            Case::UnchangedRemote => "<= 0.6 s, 160 MiB",
            Case::Incremental(Source::Tiny | Source::Wide, Step::Unchanged) => "<= 0.25, 512 MiB",
            Case::Incremental(..) => "-",
        }
    }

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
            snapshots,
            round_trip_ms,
            tiny_files,
            tiny_directories,
            wide_files,
            plenty_files,
            plenty_bytes,
            one_bytes,
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
            Case::Prune => format!("prune half of {snapshots} snapshots"),
            Case::OpenRemote => format!("S3, {round_trip_ms} ms: open and list"),
            Case::FullRemote => format!("S3, {round_trip_ms} ms: full, {large} random"),
            Case::UnchangedRemote => format!("S3, {round_trip_ms} ms: unchanged"),
            Case::Incremental(source, step) => {
                let source = match source {
                    Source::Tiny => {
                        format!("{tiny_files} x 16 bytes, {tiny_directories} directories")
                    }
                    Source::Wide => format!("{wide_files} x 16 bytes, 1 directory"),
                    Source::Plenty => format!("{plenty_files} x {} KiB", plenty_bytes >> 10),
                    Source::One => format!("1 x {}", mib(*one_bytes)),
                };
                let step = match step {
                    Step::New => "new",
                    Step::Unchanged => "unchanged",
                    Step::FileMore => "1 file more",
                    Step::LargeFileMore => "1 large file more",
                    Step::SeveralDeleted => "several deleted",
                    Step::AllDeleted => "all deleted",
                };
                format!("{source}: {step}")
            }
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

impl Measured {
    /// The cases in the order in which they were measured.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for run in &self.runs {
            if !cases.contains(&run.case) {
                cases.push(run.case);
            }
        }
        cases
    }
}

pub(crate) struct Bench<'a> {
    directory: &'a Path,
    programs: Programs,
    pub(crate) sizes: &'a Sizes,
    children: &'a Children,
    runs: Vec<Run>,
}

/// Measures all cases in `directory`; the tools take turns at going first.
pub(crate) fn run(bench: &mut Bench<'_>, rounds: usize) -> Result<()> {
    let sizes = bench.sizes;
    eprintln!("writing the data");
    data::large(&bench.path("large"), sizes.large_files, sizes.large_bytes)?;
    data::many(&bench.path("many"), sizes.many_files, sizes.directories)?;
    bench.in_turn("large files", rounds, Bench::large)?;
    bench.in_turn("many files", rounds, Bench::many)?;
    bench.in_turn("S3", rounds, Bench::remote)?;
    bench.remove("large")?;
    bench.remove("many")?;
    eprintln!("writing a repository with {} snapshots", sizes.snapshots);
    bench.history()?;
    bench.in_turn("prune", rounds, Bench::prune)
}

type Measure<'a> = fn(&mut Bench<'a>, Tool, usize) -> Result<()>;

impl<'a> Bench<'a> {
    pub(crate) fn new(
        directory: &'a Path,
        programs: Programs,
        sizes: &'a Sizes,
        children: &'a Children,
    ) -> Result<Self> {
        let bench = Self {
            directory,
            programs,
            sizes,
            children,
            runs: Vec::new(),
        };
        // Both work on copies of one repository, so that nobody wins by weaker keys.
        let template = Repository::directory(&bench.path("template"));
        bench.call(Tool::Restic, &template, directory, &["init"])?;
        Ok(bench)
    }

    pub(crate) fn measured(self) -> Result<Measured> {
        Ok(Measured {
            sizes: self.sizes.clone(),
            versions: self.programs.versions()?,
            runs: self.runs,
        })
    }

    fn in_turn(&mut self, what: &str, rounds: usize, measure: Measure<'a>) -> Result<()> {
        for round in 1..=rounds {
            let mut tools = [Tool::Restic, Tool::Jackline];
            if round % 2 == 0 {
                tools.reverse();
            }
            for tool in tools {
                eprintln!("{what}, round {round} of {rounds}: {tool:?}");
                measure(self, tool, round)?;
            }
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
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

    /// One large file to a server of its own.
    fn remote(&mut self, tool: Tool, round: usize) -> Result<()> {
        self.remove("server")?;
        self.remove("cache")?;
        fs::create_dir(self.path("server"))?;
        let runtime = tokio::runtime::Handle::current();
        let round_trip = Duration::from_millis(self.sizes.round_trip_ms);
        let (minio, line) = runtime.block_on(async {
            let minio = Minio::start(&self.path("server")).await?;
            minio.s3.make_bucket(BUCKET).await?;
            minio.s3.upload_tree(BUCKET, &self.path("template")).await?;
            let line = DelayLine::start(minio.address, round_trip).await?;
            Ok::<_, anyhow::Error>((minio, line))
        })?;
        let repository = Repository {
            name: format!("s3:http://{}/{BUCKET}", line.address()).into(),
            environment: minio.s3.environment().to_vec(),
        };
        let source = self.path("large/large-0").display().to_string();
        let backup = ["backup", "--host=bench", &source];
        let here = self.directory;
        self.call(tool, &repository, here, &["snapshots"])?;
        for (case, args) in [
            (Case::OpenRemote, &["snapshots"][..]),
            (Case::FullRemote, &backup),
            (Case::UnchangedRemote, &backup),
        ] {
            let cost = self.cost(tool, &repository, here, args)?;
            let bytes = match case {
                Case::OpenRemote => None,
                _ => Some(runtime.block_on(minio.s3.size(BUCKET, ""))?),
            };
            self.note(case, tool, round, cost, bytes);
        }
        drop(minio);
        self.remove("server")
    }

    /// Many snapshots, half of them forgotten. Each adds ten files, of which the next keeps every other.
    fn history(&mut self) -> Result<()> {
        let (repository, source) = (self.path("history"), self.path("changing"));
        tree::copy(&self.path("template"), &repository)?;
        fs::create_dir(&source)?;
        let repository = Repository::directory(&repository);
        let size = 2 * self.sizes.large_bytes / self.sizes.snapshots / 10;
        for snapshot in 0..self.sizes.snapshots {
            for number in 0..10 {
                let name = |snapshot| source.join(format!("{snapshot}-{number}"));
                if number % 2 == 1 && snapshot > 0 {
                    fs::remove_file(name(snapshot - 1))?;
                }
                let mut file = File::create(name(snapshot))?;
                data::Noise::new(2000 + snapshot * 10 + number).write(&mut file, size)?;
            }
            let backup = ["backup", "--host=bench", "."];
            self.call(Tool::Restic, &repository, &source, &backup)?;
        }
        let keep = format!("--keep-last={}", self.sizes.snapshots / 2);
        let here = self.directory;
        self.call(Tool::Restic, &repository, here, &["forget", &keep])?;
        self.remove("changing")
    }

    fn prune(&mut self, tool: Tool, round: usize) -> Result<()> {
        self.copy_of("history", tool)?;
        let args = ["prune", "--max-unused=5%"];
        self.measure(Case::Prune, tool, round, self.directory, &args)?;
        let repository = Repository::directory(&self.path("repository"));
        let here = self.directory;
        self.call(Tool::Restic, &repository, here, &["check"])
            .with_context(|| format!("what {tool:?} left"))?;
        self.remove("repository")
    }

    fn fresh_repository(&mut self, tool: Tool) -> Result<()> {
        self.copy_of("template", tool)
    }

    /// A copy of a repository, and the tool's cache of it.
    fn copy_of(&mut self, name: &str, tool: Tool) -> Result<()> {
        self.remove("repository")?;
        self.remove("cache")?;
        tree::copy(&self.path(name), &self.path("repository"))?;
        let repository = Repository::directory(&self.path("repository"));
        self.call(tool, &repository, self.directory, &["snapshots"])
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
        let directory = self.path("repository");
        let cost = self.cost(tool, &Repository::directory(&directory), current, args)?;
        let writes = matches!(args.first(), Some(&("backup" | "prune")));
        let bytes = if writes {
            Some(tree::size(&directory)?)
        } else {
            None
        };
        self.note(case, tool, round, cost, bytes);
        Ok(())
    }

    pub(crate) fn note(
        &mut self,
        case: Case,
        tool: Tool,
        round: usize,
        cost: Cost,
        bytes: Option<u64>,
    ) {
        self.runs.push(Run {
            case,
            tool,
            round,
            cost,
            repository_bytes: bytes,
        });
    }

    pub(crate) fn cost(
        &self,
        tool: Tool,
        repository: &Repository,
        current: &Path,
        args: &[&str],
    ) -> Result<Cost> {
        let mut command = self.programs.command(tool, repository, &self.path("cache"));
        command.args(args).current_dir(current);
        self.children.run(&mut command, &self.path("log"))
    }

    /// Not measured.
    pub(crate) fn call(
        &self,
        tool: Tool,
        repository: &Repository,
        current: &Path,
        args: &[&str],
    ) -> Result<()> {
        self.cost(tool, repository, current, args).map(drop)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_dir_all(self.path(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {name}"))
            }
            _ => Ok(()),
        }
    }
}
