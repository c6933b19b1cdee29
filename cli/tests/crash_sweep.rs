//! The program is killed at every request that it makes to an S3 server, before the request takes effect and after. Each time
//! restic finds the repository sound, and the next run succeeds, heals the lock and uses what was stored.
//!
//! Runs a sample of the points; `JACKLINE_CRASH=all` runs them all, `JACKLINE_CRASH=<number>` draws another sample.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use jackline_faults::{Fault, Plan, Proxy, When};
use jackline_test_cluster::Minio;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tempfile::TempDir;
use tokio::process::Command;

const BUCKET: &str = "crash";
/// Of the key in `tests/fixtures/restic-cheap-key`, which costs next to nothing to open.
const PASSWORD: &str = "a password for tests";
const SAMPLE: usize = 150;
const AT_ONCE: usize = 4;
const DEADLINE: Duration = Duration::from_secs(120);
/// What a repository may have more than one that nobody was killed in: headers, and trees that were written twice.
const SLACK: u64 = 64 << 10;

type Objects = BTreeMap<String, Vec<u8>>;

/// What is killed, from which state.
#[derive(Debug)]
struct Case {
    name: &'static str,
    args: Vec<String>,
    before: Objects,
    /// Bytes in packs when nobody is killed.
    packed: u64,
    /// Requests that it makes then.
    requests: u64,
    /// Snapshots that must be there whatever happens.
    live: Vec<String>,
}

#[derive(Debug, Clone, Copy)]
struct Point<'a> {
    case: &'a Case,
    number: u64,
    when: When,
}

struct Place {
    directory: TempDir,
    minio: Minio,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let minio = Minio::start(directory.path()).await.unwrap();
        minio.s3.make_bucket(BUCKET).await.unwrap();
        Self { directory, minio }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self) -> PathBuf {
        self.path("source")
    }

    fn command(&self, program: &str, repository: &str) -> Command {
        let mut command = Command::new(program);
        if program != "restic" {
            command.arg("repository");
        }
        command
            .env("RESTIC_REPOSITORY", repository)
            .env("RESTIC_PASSWORD", PASSWORD)
            .envs(self.minio.s3.environment())
            .current_dir(self.source())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn jackline(&self, repository: &str, args: &[String]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_jackline"), repository);
        command.args(args);
        command
    }

    fn direct(&self, prefix: &str) -> String {
        format!("s3:http://{}/{BUCKET}/{prefix}", self.minio.address)
    }

    async fn restic(&self, prefix: &str, args: &[&str]) -> Result<()> {
        let mut command = self.command("restic", &self.direct(prefix));
        command.args(["--no-cache", "check"]).args(args);
        success(command).await.map(drop)
    }

    async fn put(&self, prefix: &str, objects: &Objects) -> Result<()> {
        for (key, body) in objects {
            let key = format!("{prefix}/{key}");
            self.minio.s3.put(BUCKET, &key, body.clone()).await?;
        }
        Ok(())
    }

    /// Names and sizes below a prefix.
    async fn list(&self, prefix: &str, kind: &str) -> Result<BTreeMap<String, u64>> {
        let prefix = format!("{prefix}/");
        let listed = self
            .minio
            .s3
            .list(BUCKET, &format!("{prefix}{kind}/"))
            .await?;
        let named = listed.into_iter().map(|object| {
            let name = object.key.trim_start_matches(&prefix).to_owned();
            (name, object.size)
        });
        Ok(named.collect())
    }

    async fn packed(&self, prefix: &str) -> Result<u64> {
        Ok(self.list(prefix, "data").await?.values().sum())
    }

    /// Runs a case to its end and counts what it asks and stores.
    async fn case(
        &self,
        name: &'static str,
        args: &[&str],
        before: &Objects,
        live: &[String],
    ) -> Result<Case> {
        let mut case = Case {
            name,
            args: args.iter().map(ToString::to_string).collect(),
            before: before.clone(),
            packed: 0,
            requests: 0,
            live: live.to_vec(),
        };
        self.put(name, before).await?;
        let proxy = Proxy::start(self.minio.address, None).await?;
        let through = format!("s3:{}/{BUCKET}/{name}", proxy.endpoint());
        success(self.jackline(&through, &self.args_for(&case, name))).await?;
        case.packed = self.packed(name).await?;
        case.requests = proxy.requests().len() as u64;
        ensure!(case.requests > 5, "{name}: {:?}", proxy.requests());
        Ok(case)
    }

    /// A restore goes to a directory of its own.
    fn args_for(&self, case: &Case, prefix: &str) -> Vec<String> {
        let mut args = case.args.clone();
        if case.name == "restore" {
            let target = self.path(&format!("restored-{}", prefix.replace('/', "-")));
            args.extend(["--target".to_owned(), target.display().to_string()]);
        }
        args
    }

    /// Kills, and looks at what is left and at what comes next.
    async fn strike(&self, point: Point<'_>) -> Result<()> {
        let Point { case, number, when } = point;
        let prefix = format!("{}-{number}-{when:?}", case.name);
        self.put(&prefix, &case.before).await?;
        let plan = Plan::once(number, when, Fault::Kill);
        let proxy = Proxy::start(self.minio.address, Some(plan)).await?;
        let through = format!("s3:{}/{BUCKET}/{prefix}", proxy.endpoint());
        let args = self.args_for(case, &prefix);
        let mut child = self.jackline(&through, &args).spawn()?;
        proxy.aim(child.id().context("it has ended")?);
        let status = tokio::time::timeout(DEADLINE, child.wait()).await??;
        proxy.settled().await;
        // Requests that are made at the same time may be one more or less.
        match proxy.struck() {
            Some(request) => ensure!(!status.success(), "it outlived {request}"),
            None => ensure!(status.success(), "{status}, though nothing struck"),
        }
        let request = proxy.struck().unwrap_or_default();
        drop(proxy);
        let left = self.aftermath(case, &prefix, &args).await;
        left.with_context(|| format!("{prefix}, killed at {request}"))?;
        for key in self.minio.s3.list(BUCKET, &format!("{prefix}/")).await? {
            self.minio.s3.delete(BUCKET, &key.key).await?;
        }
        Ok(())
    }

    async fn aftermath(&self, case: &Case, prefix: &str, args: &[String]) -> Result<()> {
        self.restic(prefix, &["--read-data", "--no-lock"]).await?;
        let snapshots = self.list(prefix, "snapshots").await?;
        let forgotten = case.name == "forget"
            && !snapshots.contains_key(&format!("snapshots/{}", case.args[1]));
        let next = if forgotten {
            vec!["backup".to_owned(), ".".to_owned()]
        } else {
            args.to_vec()
        };
        success(self.jackline(&self.direct(prefix), &next)).await?;
        let locks = self.list(prefix, "locks").await?;
        ensure!(locks.is_empty(), "the next run leaves {locks:?}");
        let snapshots = self.list(prefix, "snapshots").await?;
        for live in &case.live {
            ensure!(
                snapshots.contains_key(&format!("snapshots/{live}")),
                "snapshot {live} is lost"
            );
        }
        let packed = self.packed(prefix).await?;
        ensure!(
            packed <= case.packed + SLACK,
            "{packed} bytes of packs, {} without a kill",
            case.packed
        );
        if let Some(target) = args.last().filter(|_| case.name == "restore") {
            ensure!(
                contents(Path::new(target))? == contents(&self.source())?,
                "another tree"
            );
            fs::remove_dir_all(target)?;
        }
        self.restic(prefix, &[]).await?;
        let locks = self.list(prefix, "locks").await?;
        ensure!(locks.is_empty(), "restic leaves {locks:?}");
        Ok(())
    }
}

async fn success(mut command: Command) -> Result<String> {
    let output: Output = tokio::time::timeout(DEADLINE, command.output()).await??;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{:?}: {}: {said}", command.as_std(), output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// All files of a directory that holds no others.
fn contents(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found.insert(entry.file_name().into(), fs::read(entry.path())?);
    }
    Ok(found)
}

fn objects(root: &Path, directory: &Path, found: &mut Objects) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            objects(root, &path, found);
        } else {
            let key = path.strip_prefix(root).unwrap().to_str().unwrap();
            found.insert(key.to_owned(), fs::read(&path).unwrap());
        }
    }
}

/// Bytes that do not compress.
fn noise(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::Rng::fill_bytes(random, &mut bytes);
    bytes
}

/// A repository in a directory with seven snapshots, each of which adds a file, changes one and leaves the rest.
async fn history(place: &Place) -> (Objects, Vec<String>) {
    let local = place.path("repository");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/restic-cheap-key");
    let mut empty = Objects::new();
    objects(&fixture, &fixture, &mut empty);
    for (key, body) in &empty {
        let path = local.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }
    let mut random = StdRng::seed_from_u64(1);
    fs::create_dir(place.source()).unwrap();
    let mut snapshots = Vec::new();
    for round in 0..7 {
        for name in [format!("file-{round}"), "changing".to_owned()] {
            fs::write(place.source().join(name), noise(&mut random, 100_000)).unwrap();
        }
        let args = ["backup", ".", "--json"].map(str::to_owned);
        let said = success(place.jackline(local.to_str().unwrap(), &args))
            .await
            .unwrap();
        let summary: serde_json::Value = serde_json::from_str(&said).unwrap();
        snapshots.push(summary["snapshot_id"].as_str().unwrap().to_owned());
    }
    let mut state = Objects::new();
    objects(&local, &local, &mut state);
    (state, snapshots)
}

async fn cases(place: &Place) -> Result<Vec<Case>> {
    let (state, snapshots) = history(place).await;
    let newest = snapshots.last().context("there are snapshots")?;
    let mut pruned = state.clone();
    for old in &snapshots[..5] {
        pruned.remove(&format!("snapshots/{old}"));
    }
    let restore = place
        .case("restore", &["restore", newest], &state, &snapshots)
        .await?;
    let forget = ["forget", &snapshots[0]];
    let forget = place
        .case("forget", &forget, &state, &snapshots[1..])
        .await?;
    let prune = ["prune", "--max-unused", "0%"];
    let prune = place
        .case("prune", &prune, &pruned, &snapshots[5..])
        .await?;
    // Two packs of data, and one of trees.
    let large = place.path("large");
    fs::create_dir(&large)?;
    let mut random = StdRng::seed_from_u64(2);
    for name in ["one", "two", "three"] {
        fs::write(large.join(name), noise(&mut random, 7_000_000))?;
    }
    let large = format!("{}/.", large.display());
    let backup = place
        .case("backup", &["backup", &large], &state, &snapshots)
        .await?;
    Ok(vec![restore, forget, prune, backup])
}

/// Which points, of how many.
fn draw<'a>(cases: &'a [Case]) -> Vec<Point<'a>> {
    let mut points = Vec::new();
    for case in cases {
        for number in 1..=case.requests {
            for when in [When::Before, When::After] {
                points.push(Point { case, number, when });
            }
        }
    }
    let chosen = std::env::var("JACKLINE_CRASH").unwrap_or_default();
    let total = points.len();
    if chosen != "all" {
        let mut random = StdRng::seed_from_u64(chosen.parse().unwrap_or(1));
        points.shuffle(&mut random);
        points.truncate(SAMPLE);
    }
    println!("{} of {total} points", points.len());
    points
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_request_it_leaves_a_sound_repository_and_the_next_run_heals_it() {
    let place = Place::new().await;
    let cases = cases(&place).await.unwrap();
    let began = Instant::now();
    let failures: Vec<String> = futures::stream::iter(draw(&cases))
        .map(|point| place.strike(point))
        .buffer_unordered(AT_ONCE)
        .filter_map(async |struck| struck.err().map(|error| format!("{error:#}")))
        .collect()
        .await;
    println!("took {:?}", began.elapsed());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
