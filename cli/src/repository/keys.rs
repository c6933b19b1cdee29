//! `key`: who can open the repository.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use jackline_repository::{Id, KeyCost, Password, Repository};
use serde_json::json;

use super::{Session, access};
use crate::args::KeyCommand;
use crate::exit::Exit;
use crate::{output, table};

pub(super) async fn run(session: &Session, command: KeyCommand) -> Result<ExitCode, Exit> {
    match command {
        KeyCommand::List => list(session).await?,
        KeyCommand::Add { new } => {
            let (repository, password) = with(session, &new.new_password_file).await?;
            let id = repository.add_key(&password).await?;
            said(session, "added", id, "saved the new key")?;
        }
        KeyCommand::Remove { id } => {
            let id = session.open().await?.remove_key(&id).await?;
            said(session, "removed", id, "removed key")?;
        }
        KeyCommand::Passwd { new } => {
            let (repository, password) = with(session, &new.new_password_file).await?;
            let id = repository.change_password(&password).await?;
            said(session, "changed", id, "saved the new key")?;
        }
        KeyCommand::Export {
            file,
            new_password_file: None,
        } => {
            let exported = session.open().await?;
            let exported = exported.export_key(&session.options.password).await?;
            export(session, &file, &exported)?;
        }
        KeyCommand::Export {
            file,
            new_password_file: Some(password),
        } => {
            let (repository, password) = with(session, &password).await?;
            export(session, &file, &repository.export_key(&password).await?)?;
        }
        KeyCommand::Import { file } => {
            let exported = access::read(&file)?;
            let store = session.store.clone();
            Repository::import_key(store, &session.options, &exported).await?;
            said(session, "added", Id::of(&exported), "imported key")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The repository, ready to make a key for the password in a file.
async fn with(session: &Session, file: &Path) -> Result<(Repository, Password), Exit> {
    let password = access::password_in(file)?;
    let mut options = session.options.clone();
    options.key_cost = KeyCost::for_password(&password);
    let repository = Repository::open(session.store.clone(), &options).await?;
    Ok((repository, password))
}

fn said(session: &Session, what: &str, id: Id, text: &str) -> Result<(), Exit> {
    let text = format!("{text} {}\n", id.short());
    session.print("key", &json!({"action": what, "id": id}), &text)
}

/// Nobody else can read the file at any moment, and nothing that is there is overwritten.
fn export(session: &Session, file: &Path, exported: &[u8]) -> Result<(), Exit> {
    let failed = |error: std::io::Error| Exit::failed(format!("{}: {error}", file.display()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut written = options.open(file).map_err(failed)?;
    written
        .write_all(exported)
        .and_then(|()| written.sync_all())
        .map_err(failed)?;
    let text = format!(
        "wrote the key to {}; it opens with its password only: keep both, apart from each other\n",
        file.display()
    );
    session.print("key", &json!({"action": "exported", "file": file}), &text)
}

async fn list(session: &Session) -> Result<(), Exit> {
    let keys = session.open().await?.keys().await?;
    if session.json {
        let list = serde_json::to_value(&keys).map_err(Exit::failed)?;
        return Ok(output::print_json(&list)?);
    }
    let rows: Vec<_> = keys
        .iter()
        .map(|key| {
            let mark = if key.current { "*" } else { "" };
            vec![
                format!("{mark}{}", key.id.short()),
                key.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                key.username.clone(),
                key.hostname.clone(),
            ]
        })
        .collect();
    let head = ["ID", "CREATED", "USER", "HOST"];
    output::print(&table::render(&head, &rows, table::terminal_width()))?;
    Ok(output::print("* opened the repository\n")?)
}
