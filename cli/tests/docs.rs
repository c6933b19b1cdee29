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
