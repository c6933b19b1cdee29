//! Whatever tree there is: both tools store the same of it, and both bring it back as it was.
//!
//! Every run takes the same trees; with `JACKLINE_PROPERTY_SECONDS` new ones are made for so long, and
//! `JACKLINE_PROPERTY_SEED` takes the one that failed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use jackline_repository::{Repository, RestoreOptions, Version};
use support::ours::{backup, check, restore_with};
use support::trees::assert_both_store_the_same;
use support::wild::{Era, Random, Wild};
use support::{Restic, assert_same_tree, options, scratch, store};

const ENTRIES: u32 = 120;
const TREES: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// Says which seed it was, if the test fails meanwhile.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to see it again: JACKLINE_PROPERTY_SEED={}", self.0);
        }
    }
}

/// One tree; what it holds, in which version of the format and by whom it is stored first follows from the seed.
async fn hold(seed: u64) {
    let _named = Named(seed);
    let mut random = Random::new(!seed);
    let era = random.pick(&[Era::Restic14, Era::Restic14, Era::Newer]);
    let version = random.pick(&[Version::V1, Version::V2]);
    let dir = scratch();
    let (source, repo) = (dir.path().join("source"), dir.path().join("repo"));
    Wild::tree(&source, seed, era, ENTRIES);
    let repository = Repository::init_version(store(&repo), &options(), version)
        .await
        .unwrap();
    let restic = Restic::new(&repo);
    if era == Era::Restic14 {
        assert_both_store_the_same(&repository, &restic, &source, random.one_in(2)).await;
        let target = dir.path().join("theirs");
        restic.run(&["restore", "latest", "--target", target.to_str().unwrap()]);
        assert_same_tree(&source, &target);
        fs::remove_dir_all(&target).unwrap();
    } else {
        let first = backup(&repository, &source).await;
        let second = backup(&repository, &source).await;
        assert_eq!((second.tree, second.bytes_added), (first.tree, 0));
    }
    let target = dir.path().join("ours");
    let how = RestoreOptions {
        devices: true,
        sparse: random.one_in(2),
        verify: true,
        ..RestoreOptions::default()
    };
    restore_with(&repository, "latest", &target, how).await;
    assert_same_tree(&source, &target);
    check(&repository).await;
    restic.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_tree_there_is_comes_back_as_it_was() {
    if let Some(seed) = number("JACKLINE_PROPERTY_SEED") {
        return hold(seed).await;
    }
    let Some(seconds) = number("JACKLINE_PROPERTY_SECONDS") else {
        for seed in 0..TREES {
            hold(seed).await;
        }
        return;
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let mut seeds = Random::new(now.unwrap().as_nanos() as u64);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        hold(seeds.next()).await;
    }
}
