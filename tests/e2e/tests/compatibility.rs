//! The document about Velero names every command, flag, annotation and label of Velero's own programs, and none that they do not have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use jackline_test_cluster::{velero, velero_1_14, velero_source};

const TABLE: &str = include_str!("../../../docs/reference/velero-compatibility.md");
/// Releases that are looked up in their source; of 1.14 and 1.18 there are programs.
const SOURCES: [&str; 2] = ["v1.15.2", "v1.16.2"];
const ALL_SOURCES: [&str; 4] = ["v1.14.1", "v1.15.2", "v1.16.2", "v1.18.0"];
/// What the client does not list because no user runs it, and where the source says its flags.
const SERVERS: [(&str, &str); 2] = [
    ("server", "pkg/cmd/server/config/config.go"),
    ("node-agent server", "pkg/cmd/cli/nodeagent/server.go"),
];

/// What the client does alone: how it prints, waits and downloads.
const CLIENT_ALONE: [&str; 9] = [
    "cacert",
    "client-only",
    "force",
    "insecure-skip-tls-verify",
    "label-columns",
    "output",
    "show-labels",
    "timeout",
    "verbose",
];
/// Names of plugins and of stores, beginnings of either, and a tag of snapshots.
const NO_KEYS: [&str; 8] = [
    "velero.io/",
    "velero.io/aws",
    "velero.io/azure",
    "velero.io/backup",
    "velero.io/csi-",
    "velero.io/fs",
    "velero.io/gcp",
    "velero.io/vsphere-pvc-backupper",
];

type Flags = BTreeSet<String>;

#[test]
fn every_command_and_flag_of_the_client_is_spoken_of() -> Result<()> {
    let mut known = BTreeMap::new();
    commands(&velero()?, "", &mut known)?;
    ensure!(known.len() > 50, "{}", known.len());
    let mut named = documented()?;
    named.retain(|command, _| SERVERS.iter().all(|(server, _)| server != command));
    same("commands", named.keys(), known.keys())?;
    for (command, flags) in &known {
        let named = named.get(command).context("a command")?;
        same(&format!("velero {command}"), named, flags)?;
    }
    Ok(())
}

#[test]
fn every_flag_of_the_servers_is_spoken_of() -> Result<()> {
    let programs = [velero_1_14()?.velero, velero()?];
    let named = documented()?;
    for (server, file) in SERVERS {
        let mut known = Flags::new();
        for program in &programs {
            known.extend(Help::of(program, server)?.flags);
        }
        for release in SOURCES {
            let source = fs::read_to_string(velero_source(release)?.join(file))?;
            known.extend(declared(&source));
        }
        let named = named.get(server).with_context(|| server.to_owned())?;
        same(&format!("velero {server}"), named, &known)?;
    }
    Ok(())
}

#[test]
fn our_programs_take_the_flags_that_they_are_said_to_take() -> Result<()> {
    let controller = long_flags(&jackline_controller::args::Args::command());
    let mut agent = jackline_node_agent::args::Args::command();
    agent.build();
    let agent = long_flags(agent.find_subcommand("server").context("server")?);
    for (server, known) in [("server", controller), ("node-agent server", agent)] {
        let taken = taken()?.remove(server).context(server)?;
        let missing: Vec<_> = taken.difference(&known).collect();
        ensure!(
            !taken.is_empty() && missing.is_empty(),
            "velero {server}: {missing:?}"
        );
    }
    Ok(())
}

#[test]
fn every_flag_that_works_is_used_by_a_test() -> Result<()> {
    let mut tests = String::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for directory in ["src", "tests"] {
        append(&here.join(directory), "rs", &mut tests)?;
    }
    let words: BTreeSet<&str> = tests
        .split(|sign: char| !(sign.is_ascii_alphanumeric() || "-_".contains(sign)))
        .collect();
    let mut missing = BTreeSet::new();
    for (command, flags) in taken()? {
        // Flags of every command, such as those of its log, are the client's own.
        if command.is_empty() || SERVERS.iter().any(|(server, _)| *server == command) {
            continue;
        }
        let unused = |flag: &String| {
            !CLIENT_ALONE.contains(&flag.as_str()) && !words.contains(&*format!("--{flag}"))
        };
        missing.extend(flags.into_iter().filter(unused));
    }
    ensure!(missing.is_empty(), "used nowhere: {missing:?}");
    Ok(())
}

#[test]
fn every_annotation_label_and_finalizer_is_one_of_velero_s() -> Result<()> {
    let mut sources = String::new();
    let mut plugins = BTreeSet::new();
    for release in ALL_SOURCES {
        let source = velero_source(release)?;
        let file = fs::read_to_string(source.join("pkg/cmd/server/plugin/plugin.go"))?;
        plugins.extend(keys(&file).map(str::to_owned));
        for directory in ["pkg", "internal"] {
            append(&source.join(directory), "go", &mut sources)?;
        }
    }
    let declared: BTreeSet<String> = keys(&sources)
        .filter(|key| !plugins.contains(*key) && !NO_KEYS.contains(key))
        .map(str::to_owned)
        .collect();
    ensure!(declared.len() > 50, "{declared:?}");
    let named: BTreeSet<String> = first_cells(section("Annotations, labels and finalizers")?)
        .flat_map(quoted)
        .collect();
    let spoken = |key: &String| {
        named.contains(key) || (key.ends_with(['/', '_']) && named.contains(&format!("{key}…")))
    };
    let missing: Vec<_> = declared.iter().filter(|key| !spoken(key)).collect();
    ensure!(missing.is_empty(), "not in the table: {missing:?}");
    for name in &named {
        // Velero puts the names of hooks together, once for each time at which they run.
        let (prefix, key) = name.split_once('/').context("a slash")?;
        let parts = ["pre", "post"].map(|when| prefix.strip_prefix(&format!("{when}.")));
        let bare = parts.into_iter().flatten().next().unwrap_or(prefix);
        let bare = format!("{bare}/{}", key.trim_end_matches('…'));
        let known = sources.contains(name.trim_end_matches('…')) || sources.contains(&bare);
        ensure!(known, "{name} is in the table, and nowhere in Velero");
    }
    Ok(())
}

/// A command as its own help describes it.
#[derive(Debug)]
struct Help {
    commands: Vec<String>,
    flags: Flags,
}

impl Help {
    fn of(program: &Path, command: &str) -> Result<Self> {
        let output = Command::new(program)
            .args(command.split_whitespace())
            .arg("--help")
            .output()
            .context("start velero")?;
        ensure!(output.status.success(), "velero {command}: {output:?}");
        let said = String::from_utf8(output.stdout)?;
        let part = |title: &str| {
            let text = said.split(&format!("\n{title}:\n")).nth(1);
            text.and_then(|text| text.split("\n\n").next())
                .unwrap_or_default()
        };
        let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
        let commands = part("Available Commands").lines().filter_map(first);
        let flags = part("Flags").lines().map(str::trim_start);
        let flags = flags.filter(|line| line.starts_with('-'));
        let long = |line: &str| line.split_whitespace().take(2).find_map(flag);
        Ok(Self {
            commands: commands.collect(),
            flags: flags
                .filter_map(long)
                .filter(|flag| flag != "help")
                .collect(),
        })
    }
}

/// A command and those below it that do something, with their flags; the flags of all are those of the command without a name.
fn commands(program: &Path, command: &str, known: &mut BTreeMap<String, Flags>) -> Result<()> {
    let help = Help::of(program, command)?;
    if help.commands.is_empty() || command.is_empty() {
        known.insert(command.to_owned(), help.flags);
    }
    for name in help.commands {
        commands(program, format!("{command} {name}").trim(), known)?;
    }
    Ok(())
}

/// The flags that Go source declares: the first text in each call of a function `…Var`.
fn declared(source: &str) -> Flags {
    let calls = source.split("Var(").skip(1);
    let named = calls.filter_map(|call| call.split('"').nth(1));
    named.map(str::to_owned).collect()
}

fn long_flags(command: &clap::Command) -> Flags {
    let arguments = command.get_arguments();
    arguments
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

/// The texts in Go source that are names with a domain of Velero's.
fn keys(source: &str) -> impl Iterator<Item = &str> {
    let plain = |text: &str| {
        let mut signs = text.chars();
        signs.all(|sign| sign.is_ascii_alphanumeric() || "./-_".contains(sign))
    };
    let texts = source.split('"');
    texts.filter(move |text| text.contains("velero.io/") && plain(text))
}

/// Every command that the document has a section or a row for, with the flags in it.
fn documented() -> Result<BTreeMap<String, Flags>> {
    rows(|_| true)
}

/// The same, with the flags alone that do something.
fn taken() -> Result<BTreeMap<String, Flags>> {
    rows(|row| matches!(row.split('|').nth(2).map(str::trim), Some("yes" | "better")))
}

fn rows(wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Flags>> {
    let mut found = BTreeMap::new();
    for section in section("Commands")?.split("\n### ").skip(1) {
        let (heading, text) = section.split_once('\n').context("a heading")?;
        let cells = || first_cells(text).flat_map(quoted);
        let rows = text.lines().filter(|row| wanted(row));
        let flags = rows.flat_map(first_cells).flat_map(quoted);
        let flags: Flags = flags.filter_map(|cell| flag(&cell)).collect();
        for command in quoted(heading).into_iter().chain(cells()) {
            let Some(command) = command.strip_prefix("velero") else {
                continue;
            };
            let before = found.insert(command.trim().to_owned(), flags.clone());
            ensure!(before.is_none(), "velero{command} stands there twice");
        }
    }
    Ok(found)
}

/// The part of the document below a heading.
fn section(heading: &str) -> Result<&'static str> {
    let text = TABLE.split(&format!("\n## {heading}\n")).nth(1);
    let text = text.with_context(|| heading.to_owned())?;
    Ok(text.split("\n## ").next().unwrap_or_default())
}

fn first_cells(text: &str) -> impl Iterator<Item = &str> {
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('|').nth(1))
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

fn flag(word: &str) -> Option<String> {
    let word = word.trim_end_matches(|sign: char| !sign.is_ascii_alphanumeric());
    word.strip_prefix("--").map(str::to_owned)
}

fn same<'a>(
    what: &str,
    named: impl IntoIterator<Item = &'a String>,
    known: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    let named: BTreeSet<_> = named.into_iter().collect();
    let known: BTreeSet<_> = known.into_iter().collect();
    let missing: Vec<_> = known.difference(&named).collect();
    let strange: Vec<_> = named.difference(&known).collect();
    ensure!(
        missing.is_empty() && strange.is_empty(),
        "{what}: not in the table {missing:?}, not in Velero {strange:?}"
    );
    Ok(())
}

/// All files below a directory with an extension, but the tests of Go.
fn append(directory: &Path, extension: &str, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let test = path.to_string_lossy().ends_with("_test.go");
        if path.is_dir() {
            append(&path, extension, text)?;
        } else if !test && path.extension().is_some_and(|found| found == extension) {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
