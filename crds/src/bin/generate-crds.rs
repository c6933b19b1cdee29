//! Writes `crds/yaml` and `docs/reference/api.md`, or with `--check` says what is not as it would be written.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

fn main() -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let check = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => return Err(format!("{other}: expected nothing or --check").into()),
    };
    let room = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = room.join("yaml");
    let mut wanted = Vec::new();
    for (name, content) in jackline_crds::yaml::files()? {
        wanted.push((directory.join(name), content));
    }
    wanted.push((
        room.join("../docs/reference/api.md"),
        jackline_crds::reference::page(),
    ));

    let known: BTreeSet<_> = wanted.iter().map(|(path, _)| path.clone()).collect();
    let mut differs = false;
    for (path, content) in &wanted {
        if std::fs::read_to_string(path).is_ok_and(|found| found == *content) {
            continue;
        }
        differs = true;
        if check {
            eprintln!("{} is not what the types say", path.display());
        } else {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, content)?;
            println!("wrote {}", path.display());
        }
    }
    for entry in std::fs::read_dir(&directory)?.flatten() {
        if !known.contains(&entry.path()) {
            differs = true;
            if check {
                eprintln!("{} belongs to no kind", entry.path().display());
            } else {
                std::fs::remove_file(entry.path())?;
                println!("removed {}", entry.path().display());
            }
        }
    }
    if check && differs {
        eprintln!("run `make generate`");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
