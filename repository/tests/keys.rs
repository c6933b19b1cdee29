//! Several keys of one repository: ours and those of Debian's restic.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::path::Path;

use jackline_repository::{Error, KeyCost, OpenOptions, Password, Repository};
use support::{PASSWORD, Restic, init, scratch, store};

const SECOND: &str = "a second password";

fn with(password: &str) -> OpenOptions {
    OpenOptions::new(Password::new(password)).with_key_cost(KeyCost::Generated)
}

async fn open(repo: &Path, password: &str) -> Result<Repository, Error> {
    Repository::open(store(repo), &with(password)).await
}

fn opens_in_restic(repo: &Path, password: &str) -> bool {
    let restic = Restic::with_password(repo, password);
    restic.output(&["cat", "config"]).status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_opens_with_keys_that_we_add() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let first = repository.keys().await.unwrap();
    assert!(first.len() == 1 && first[0].current, "{first:?}");

    let added = repository.add_key(&Password::new(SECOND)).await.unwrap();
    assert!(opens_in_restic(&repo, SECOND) && opens_in_restic(&repo, PASSWORD));
    assert!(!opens_in_restic(&repo, "a third"));
    let second = open(&repo, SECOND).await.unwrap();
    let keys = second.keys().await.unwrap();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys.iter().find(|key| key.current).unwrap().id, added);

    let removed = second.remove_key(&first[0].id.short()).await.unwrap();
    assert_eq!(removed, first[0].id);
    assert!(opens_in_restic(&repo, SECOND) && !opens_in_restic(&repo, PASSWORD));
    assert!(matches!(
        open(&repo, PASSWORD).await,
        Err(Error::WrongPassword { .. })
    ));
    assert_eq!(support::count(&repo, "locks"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_a_person_chose_gets_a_calibrated_key() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    init(&repo).await;
    let options = OpenOptions::new(Password::new(PASSWORD));
    assert_eq!(options.key_cost, KeyCost::Calibrated);
    let generated = OpenOptions::new(Password::new("0123456789abcdef".repeat(4)));
    assert_eq!(generated.key_cost, KeyCost::Generated);
    let repository = Repository::open(store(&repo), &options).await.unwrap();
    repository.add_key(&Password::new(SECOND)).await.unwrap();
    assert!(opens_in_restic(&repo, SECOND));
    assert!(open(&repo, SECOND).await.is_ok());
}

/// Memory and work of each guess, by the only key file of a repository.
fn strength(repo: &Path) -> (u64, u64) {
    let mut keys = fs::read_dir(repo.join("keys")).unwrap();
    let key = fs::read(keys.next().unwrap().unwrap().path()).unwrap();
    let key: serde_json::Value = serde_json::from_slice(&key).unwrap();
    let [n, r, p] = ["N", "r", "p"].map(|name| key[name].as_u64().unwrap());
    (n * r, n * r * p)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calibrated_key_is_as_strong_as_restics() {
    let dir = scratch();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    let options = OpenOptions::new(Password::new(PASSWORD)).with_key_cost(KeyCost::Calibrated);
    Repository::init(store(&ours), &options).await.unwrap();
    Restic::new(&theirs).init();
    let (ours, theirs) = (strength(&ours), strength(&theirs));
    // Both measure, at different moments of a machine that may be busy.
    assert!(
        ours.0 >= theirs.0 && 2 * ours.1 >= theirs.1,
        "{ours:?} {theirs:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn we_open_with_keys_that_restic_adds() {
    let dir = scratch();
    let (repo, file) = (dir.path().join("repo"), dir.path().join("password"));
    fs::write(&file, SECOND).unwrap();
    let repository = init(&repo).await;
    let restic = Restic::new(&repo);
    restic.run(&["key", "add", "--new-password-file", file.to_str().unwrap()]);
    let second = open(&repo, SECOND).await.unwrap();
    assert_eq!(second.id(), repository.id());

    fs::write(&file, "a third password").unwrap();
    let restic = Restic::with_password(&repo, SECOND);
    let path = file.to_str().unwrap();
    restic.run(&["key", "passwd", "--new-password-file", path]);
    assert!(open(&repo, SECOND).await.is_err());
    assert!(open(&repo, "a third password").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_never_left_without_a_key_that_opens() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let own = repository.keys().await.unwrap()[0].id;
    let refused = async |repository: &Repository, id: &str, reason: &str| {
        let error = repository.remove_key(id).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    };
    refused(&repository, &own.to_hex(), "in use").await;
    refused(&repository, "", "no key").await;
    refused(&repository, "xyz", "no key").await;

    // Two that are open with different keys do not remove one another's and end with none.
    repository.add_key(&Password::new(SECOND)).await.unwrap();
    let second = open(&repo, SECOND).await.unwrap();
    second.remove_key(&own.to_hex()).await.unwrap();
    let last = second.keys().await.unwrap()[0].id;
    refused(&repository, &last.to_hex(), "last key").await;
    assert!(opens_in_restic(&repo, SECOND));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_replaces_the_key_in_use() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let new = repository
        .change_password(&Password::new(SECOND))
        .await
        .unwrap();
    let keys = repository.keys().await.unwrap();
    assert!(
        keys.len() == 1 && keys[0].current && keys[0].id == new,
        "{keys:?}"
    );
    assert!(opens_in_restic(&repo, SECOND) && !opens_in_restic(&repo, PASSWORD));
    repository
        .change_password(&Password::new(PASSWORD))
        .await
        .unwrap();
    assert!(opens_in_restic(&repo, PASSWORD) && !opens_in_restic(&repo, SECOND));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_key_opens_a_repository_whose_keys_are_lost() {
    let dir = scratch();
    let (repo, other) = (dir.path().join("repo"), dir.path().join("other"));
    let repository = init(&repo).await;
    let exported = repository.export_key(&Password::new(SECOND)).await.unwrap();
    assert!(!String::from_utf8_lossy(&exported).contains(SECOND));
    assert_eq!(support::count(&repo, "keys"), 1, "an export adds no key");
    fs::remove_dir_all(repo.join("keys")).unwrap();

    let import = async |repo: &Path, password: &str, exported: &[u8]| {
        Repository::import_key(store(repo), &with(password), exported).await
    };
    assert!(matches!(
        import(&repo, PASSWORD, &exported).await,
        Err(Error::WrongPassword { .. })
    ));
    assert!(matches!(
        import(&repo, SECOND, b"{}").await,
        Err(Error::Corrupt { .. })
    ));
    init(&other).await;
    assert!(matches!(
        import(&other, SECOND, &exported).await,
        Err(Error::Invalid(_))
    ));
    assert_eq!(support::count(&other, "keys"), 1);

    let opened = import(&repo, SECOND, &exported).await.unwrap();
    assert_eq!(opened.id(), repository.id());
    import(&repo, SECOND, &exported).await.unwrap();
    assert_eq!(support::count(&repo, "keys"), 1, "twice is once");
    assert!(opens_in_restic(&repo, SECOND));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_key_does_not_keep_the_others_from_opening() {
    let dir = scratch();
    let repo = dir.path().join("repo");
    let repository = init(&repo).await;
    let added = repository.add_key(&Password::new(SECOND)).await.unwrap();
    fs::write(repo.join("keys").join(added.to_hex()), b"{}").unwrap();
    assert!(open(&repo, PASSWORD).await.is_ok());
    let error = open(&repo, SECOND).await.unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { object, .. } if object.contains(&added.to_hex())),
        "{error}"
    );
}
