//! The reference page is what the program says of itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::process::Command;

#[test]
fn the_reference_page_is_up_to_date() {
    let output = Command::new(env!("CARGO_BIN_EXE_jackline"))
        .arg("docs")
        .output()
        .unwrap();
    assert!(output.status.success());
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/cli.md");
    let page = std::fs::read_to_string(page).expect("docs/reference/cli.md exists");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        printed == page,
        "docs/reference/cli.md is not what `jackline docs` prints: run `make generate`"
    );
}

#[test]
fn every_command_of_the_how_to_for_repositories_runs() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/repository.md");
    let page = std::fs::read_to_string(page).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("srv");
    std::fs::create_dir_all(root.join("data/photos")).unwrap();
    std::fs::write(root.join("data/photos/one"), "a photo").unwrap();
    std::fs::write(root.join("data/note.txt"), "a note").unwrap();
    let mut script = String::new();
    for block in page.split("```sh\n").skip(1) {
        script += block.split("```").next().unwrap();
    }
    assert!(script.lines().count() > 20, "{script}");
    let script = script.replace("/srv/", &format!("{}/", root.display()));
    let programs = std::path::Path::new(env!("CARGO_BIN_EXE_jackline"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &script])
        .env("PATH", path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        std::fs::read_to_string(root.join("photos/one")).unwrap(),
        "a photo"
    );
    let texts = root.join(format!("texts/{}", root.join("data").display()));
    assert_eq!(std::fs::read_dir(texts).unwrap().count(), 1);
}

#[test]
fn coverage_without_a_cluster_fails_with_the_reason() {
    let output = Command::new(env!("CARGO_BIN_EXE_jackline"))
        .arg("coverage")
        .env("KUBECONFIG", "/no/such/kubeconfig")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/no/such/kubeconfig"), "{said}");
}
