//! The document about Velero names every command, flag, annotation and label of Velero's own programs, and none that they do not have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
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
fn every_annotation_and_label_is_one_of_velero_s() -> Result<()> {
    let mut sources = String::new();
    let mut declared = BTreeSet::new();
    for release in ALL_SOURCES {
        let source = velero_source(release)?;
        let file = source.join("pkg/apis/velero/v1/labels_annotations.go");
        let file = fs::read_to_string(file)?;
        let literals = file.split('"').skip(1).step_by(2);
        declared.extend(
            literals
                .filter(|key| key.contains("velero.io/"))
                .map(str::to_owned),
        );
        for directory in ["pkg", "internal"] {
            append(&source.join(directory), &mut sources)?;
        }
    }
    let named: BTreeSet<String> = first_cells(section("Annotations and labels")?)
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

/// Every command that the document has a section or a row for, with the flags in it.
fn documented() -> Result<BTreeMap<String, Flags>> {
    let mut found = BTreeMap::new();
    for section in section("Commands")?.split("\n### ").skip(1) {
        let (heading, text) = section.split_once('\n').context("a heading")?;
        let cells = || first_cells(text).flat_map(quoted);
        let flags: Flags = cells().filter_map(|cell| flag(&cell)).collect();
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

/// All Go files below a directory.
fn append(directory: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            append(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "go") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
