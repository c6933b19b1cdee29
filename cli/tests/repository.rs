//! `jackline repository` as users and scripts call it, beside Debian's restic.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Place, same_trees, success};

#[test]
fn a_backup_comes_back_as_it_was() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    let target = place.path("restored");
    place.ok(&["restore", "latest", "--target", target.to_str().unwrap()]);
    same_trees(&place.path("source"), &target);
    place.ok(&["check", "--read-data"]);
}

#[test]
fn restic_reads_what_jackline_wrote_and_the_other_way_round() {
    let place = Place::initialised();
    place.ok(&["backup", ".", "--tag", "ours", "--host", "h"]);
    place.restic(&["check", "--read-data"]);
    place.restic(&[
        "restore",
        "latest",
        "--target",
        place.path("by-restic").to_str().unwrap(),
    ]);
    same_trees(&place.path("source"), &place.path("by-restic"));

    fs::write(place.path("source/more"), "more").unwrap();
    place.restic(&["backup", ".", "--tag", "theirs", "--host", "h"]);
    let to = place.path("by-jackline");
    place.ok(&[
        "restore",
        "latest",
        "--tag",
        "theirs",
        "--target",
        to.to_str().unwrap(),
    ]);
    same_trees(&place.path("source"), &to);

    // The next backup takes restic's as its parent and reads nothing again.
    let summary = place.json(&["backup", ".", "--host", "h", "--json"]);
    assert_eq!(summary["files_unmodified"], 3, "{summary}");
    assert_eq!(summary["bytes_read"], 0, "{summary}");
    let listed = place.restic(&["snapshots", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    place.ok(&["check", "--read-data"]);
    place.restic(&["check", "--read-data"]);
}

#[test]
fn a_dot_stores_the_entries_and_an_absolute_path_stores_all_of_it() {
    let place = Place::initialised();
    place.ok(&["backup", ".", "--tag", "dot"]);
    place.ok(&[
        "backup",
        place.path("source").to_str().unwrap(),
        "--tag",
        "absolute",
    ]);
    let restore = |tag: &str| {
        let target = place.path(tag);
        place.ok(&[
            "restore",
            "latest",
            "--tag",
            tag,
            "--target",
            target.to_str().unwrap(),
        ]);
        target
    };
    assert!(restore("dot").join("hello").exists());
    let absolute = restore("absolute");
    let whole = absolute.join(place.path("source").strip_prefix("/").unwrap());
    same_trees(&place.path("source"), &whole);
}

#[test]
fn snapshots_are_listed_for_people_and_for_programs() {
    let place = Place::initialised();
    place.ok(&["backup", ".", "--tag", "a,b", "--host", "one"]);
    place.ok(&["backup", ".", "--tag", "c", "--host", "two"]);
    let all = place.json(&["snapshots", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(all[0]["hostname"], "one");
    assert_eq!(all[0]["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(all[0]["paths"][0], place.path("source").to_str().unwrap());
    let (id, short) = (
        all[0]["id"].as_str().unwrap(),
        all[0]["short_id"].as_str().unwrap(),
    );
    assert!(
        id.len() == 64 && id.starts_with(short) && short.len() == 8,
        "{id} {short}"
    );
    for (filter, count) in [
        (&["--host", "one"][..], 1),
        (&["--tag", "a,b"], 1),
        (&["--tag", "a,c"], 0),
        (&["--tag", "a", "--tag", "c"], 2),
        (&["--path", "."], 2),
        (&["--path", "/elsewhere"], 0),
        (&[short], 1),
    ] {
        let mut args = vec!["snapshots", "-o", "json"];
        args.extend(filter);
        assert_eq!(
            place.json(&args).as_array().unwrap().len(),
            count,
            "{filter:?}"
        );
    }
    let text = place.ok(&["snapshots"]);
    assert!(
        text.starts_with("ID ") && text.ends_with("2 snapshots\n"),
        "{text}"
    );
    assert!(text.contains(short), "{text}");
}

#[test]
fn summaries_hold_what_scripts_of_restic_read() {
    let place = Place::new();
    let made = place.json(&["init", "--json"]);
    assert_eq!(made["message_type"], "initialized");
    assert_eq!(made["id"].as_str().unwrap().len(), 64);
    let summary = place.json(&["backup", ".", "--json"]);
    assert_eq!(summary["message_type"], "summary");
    assert_eq!(summary["files_new"], 2);
    assert_eq!(summary["total_files_processed"], 2);
    assert_eq!(summary["total_bytes_processed"], (3 << 20) + 6);
    assert!(summary["data_added"].as_u64().unwrap() > 6);
    assert!(summary["total_duration"].is_f64());
    assert_eq!(summary["snapshot_id"].as_str().unwrap().len(), 64);
    let again = place.json(&["backup", ".", "--json"]);
    assert_eq!(
        (&again["files_unmodified"], &again["data_blobs"]),
        (&2.into(), &0.into())
    );
    let check = place.json(&["check", "--read-data", "--json"]);
    assert_eq!(check["errors"], serde_json::json!([]));
    assert_eq!(check["snapshots"], 2);
}

#[test]
fn forgotten_space_comes_back_with_prune() {
    let place = Place::initialised();
    let noise: Vec<u8> = (0_u32..1 << 20)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(place.path("source/big"), noise).unwrap();
    let big = place.json(&["backup", ".", "--json"]);
    fs::remove_file(place.path("source/big")).unwrap();
    place.ok(&["backup", "."]);
    let forgotten = place.json(&["forget", big["snapshot_id"].as_str().unwrap(), "--json"]);
    assert_eq!(forgotten["removed"].as_array().unwrap().len(), 1);
    let pruned = place.json(&["prune", "--max-unused", "0%", "--json"]);
    let size = |name: &str| pruned[name].as_u64().unwrap();
    assert!(
        size("bytes_after") + (1 << 20) < size("bytes_before"),
        "{pruned}"
    );
    place.ok(&["check", "--read-data"]);
    place.restic(&["check", "--read-data"]);
    let target = place.path("restored");
    place.ok(&["restore", "latest", "--target", target.to_str().unwrap()]);
    same_trees(&place.path("source"), &target);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let place = Place::new();
    assert_eq!(place.code(&["snapshots"]), 10, "no repository");
    place.ok(&["init"]);
    assert_eq!(place.code(&["init"]), 1, "never made anew");
    assert_eq!(place.code(&["snapshots", "--nonsense"]), 2);
    assert_eq!(
        place.code(&["restore", "0123abcd", "--target", "/nowhere"]),
        1
    );
    assert_eq!(place.code(&["backup", "/no/such/path"]), 1);
    assert_eq!(place.code(&["--repo", "sftp:host:/r", "snapshots"]), 1);
    let wrong = place
        .jackline(&["snapshots", "--json"])
        .env("RESTIC_PASSWORD", "other")
        .output();
    let wrong = wrong.unwrap();
    assert_eq!(wrong.status.code(), Some(12));
    let words: Value = serde_json::from_slice(&wrong.stderr).unwrap();
    assert_eq!(
        (&words["message_type"], &words["code"]),
        (&"exit_error".into(), &12.into())
    );
    let missing = place
        .jackline(&["snapshots"])
        .env_remove("RESTIC_PASSWORD")
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("--password-file"));
}

#[test]
fn a_password_file_may_end_in_a_line_break() {
    let place = Place::initialised();
    fs::write(place.path("password"), "secret\r\n").unwrap();
    let file = place.path("password");
    let file = file.to_str().unwrap();
    for args in [
        &["-p", file, "snapshots"][..],
        &["snapshots", "--password-file", file],
    ] {
        success(
            place
                .jackline(args)
                .env_remove("RESTIC_PASSWORD")
                .output()
                .unwrap(),
        );
    }
    let variable = place
        .jackline(&["snapshots"])
        .env_remove("RESTIC_PASSWORD")
        .env("RESTIC_PASSWORD_FILE", file)
        .output();
    success(variable.unwrap());
}

/// Starts a backup that takes a while, and waits until it holds its lock.
fn slow_backup(place: &Place) -> std::process::Child {
    let big = fs::File::create(place.path("source/big")).unwrap();
    big.set_len(40 << 30).unwrap();
    let backup = place
        .jackline(&["backup", "."])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while locks(place) == 0 {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "no lock was taken"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    backup
}

fn locks(place: &Place) -> usize {
    fs::read_dir(place.path("repository/locks")).map_or(0, Iterator::count)
}

#[test]
fn a_signal_ends_a_backup_soon_and_releases_its_lock() {
    for signal in ["INT", "TERM"] {
        let place = Place::initialised();
        let mut backup = slow_backup(&place);
        let started = Instant::now();
        let kill = Command::new("kill")
            .args([&format!("-{signal}"), &backup.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(backup.wait().unwrap().code(), Some(130));
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(locks(&place), 0);
        fs::remove_file(place.path("source/big")).unwrap();
        place.ok(&["backup", "."]);
        place.restic(&["check", "--read-data"]);
    }
}

/// A command that takes no token is stopped too while it waits for somebody else's lock.
#[test]
fn a_signal_ends_a_command_that_waits_for_a_lock() {
    let place = Place::initialised();
    let mut backup = slow_backup(&place);
    let mut waiting = place
        .jackline(&["--retry-lock", "1h", "key", "remove", "00000000"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(waiting.try_wait().unwrap().is_none(), "it waits");
    let started = Instant::now();
    let kill = Command::new("kill").arg(waiting.id().to_string()).status();
    assert!(kill.unwrap().success());
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(locks(&place), 1, "that of the backup");
    backup.kill().unwrap();
    backup.wait().unwrap();
}

#[test]
fn a_locked_repository_says_so_and_a_dead_lock_is_healed() {
    let place = Place::initialised();
    // Where nothing can be deleted, a prune needs nobody to be gone.
    let made = place.json(&["backup", ".", "--json"]);
    place.ok(&["forget", made["snapshot_id"].as_str().unwrap()]);
    let mut backup = slow_backup(&place);
    assert_eq!(place.code(&["prune"]), 11);
    let restic = place.command("restic").args(["prune"]).output().unwrap();
    assert!(!restic.status.success(), "restic sees our lock");
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert!(locks(&place) > 0, "a killed process leaves its lock");
    fs::remove_file(place.path("source/big")).unwrap();
    place.ok(&["prune"]);
    assert_eq!(locks(&place), 0);
    place.restic(&["check", "--read-data"]);
}

#[test]
fn restics_unlock_leaves_a_running_backup_its_lock() {
    let place = Place::initialised();
    let mut backup = slow_backup(&place);
    // To restic a lock of its own host is stale unless its process takes a SIGHUP.
    place.restic(&["unlock"]);
    let hangup = Command::new("kill")
        .args(["-HUP", &backup.id().to_string()])
        .status();
    assert!(hangup.unwrap().success());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(locks(&place), 1);
    assert!(backup.try_wait().unwrap().is_none(), "the backup goes on");
    backup.kill().unwrap();
    backup.wait().unwrap();
    place.restic(&["unlock"]);
    assert_eq!(locks(&place), 0, "a dead one is healed by restic too");
}

#[test]
fn unreadable_files_make_a_backup_incomplete() {
    let place = Place::initialised();
    // Reading a directory's memory through /proc fails for root too.
    let proc = place
        .jackline(&["backup", "/proc/self/mem"])
        .output()
        .unwrap();
    assert_eq!(
        proc.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&proc.stderr)
    );
    assert!(String::from_utf8_lossy(&proc.stderr).contains("mem"));
}

#[test]
fn no_output_ever_holds_the_password() {
    let place = Place::new();
    for args in [
        &["init"][..],
        &["backup", "."],
        &["snapshots"],
        &["--help"],
        &["init", "--json"],
    ] {
        let output = place
            .jackline(args)
            .env("RESTIC_PASSWORD", "canary")
            .output()
            .unwrap();
        let shown = [output.stdout, output.stderr].concat();
        assert!(
            !String::from_utf8_lossy(&shown).contains("canary"),
            "{args:?}"
        );
    }
}

#[test]
fn a_repository_without_an_index_is_repaired() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    fs::remove_dir_all(place.path("repository/index")).unwrap();
    fs::create_dir(place.path("repository/index")).unwrap();
    assert_eq!(place.code(&["check"]), 1);
    let dry = place.json(&["repair", "index", "--dry-run", "--json"]);
    assert_eq!((&dry["changed"], &dry["packs"]), (&true.into(), &2.into()));
    assert_eq!(place.code(&["check"]), 1);
    place.ok(&["repair", "index"]);
    let report = place.json(&["repair", "snapshots", "--forget", "--json"]);
    assert_eq!(report["repaired"], serde_json::json!([]));
    place.ok(&["check", "--read-data-subset", "1/1"]);
    place.ok(&["check", "--read-data-subset", "100M"]);
    place.restic(&["check", "--read-data"]);
}

#[test]
fn keys_come_and_go() {
    let place = Place::initialised();
    let only = place.json(&["key", "list", "--json"]);
    let first = only[0]["id"].as_str().unwrap();
    assert_eq!(
        (only.as_array().unwrap().len(), &only[0]["current"]),
        (1, &true.into())
    );
    let file = place.path("other");
    fs::write(&file, "another").unwrap();
    let file = file.to_str().unwrap();
    let add = ["key", "add", "--new-password-file", file, "--json"];
    let added = place.json(&add);
    assert_eq!(
        (&added["message_type"], &added["action"]),
        (&"key".into(), &"added".into())
    );
    let second = added["id"].as_str().unwrap();
    assert_eq!(place.code(&["key", "remove", first]), 1, "the key in use");
    let with = |args: &[&str]| {
        let mut command = place.jackline(&["-p", file]);
        success(command.args(args).output().unwrap())
    };
    let removed: Value =
        serde_json::from_str(&with(&["key", "remove", &first[..8], "--json"])).unwrap();
    assert_eq!(
        (&removed["action"], &removed["id"]),
        (&"removed".into(), &first.into())
    );
    assert_eq!(place.code(&["snapshots"]), 12, "the password is gone");
    let left: Value = serde_json::from_str(&with(&["key", "list", "--json"])).unwrap();
    assert_eq!(
        (left.as_array().unwrap().len(), &left[0]["id"]),
        (1, &second.into())
    );
}

#[test]
fn damage_is_told_to_programs_in_the_report_alone() {
    let place = Place::initialised();
    place.ok(&["backup", "."]);
    let subset = place.json(&["check", "--read-data-subset", "5%", "--json"]);
    assert_eq!(
        (&subset["packs"], &subset["packs_read"]),
        (&2.into(), &1.into())
    );
    fs::remove_dir_all(place.path("repository/data")).unwrap();
    let check = place.jackline(&["check", "--json"]).output().unwrap();
    assert_eq!(check.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&check.stdout).unwrap();
    assert!(report["errors"].as_array().unwrap().len() >= 2, "{report}");
    let words: Value = serde_json::from_slice(&check.stderr).unwrap();
    assert_eq!(words["message_type"], "exit_error");
}

#[test]
fn on_a_terminal_a_bar_shows_how_far_it_is() {
    let place = Place::initialised();
    let noise: Vec<u8> = (0_u32..16 << 20)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    fs::write(place.path("source/big"), noise).unwrap();
    let program = env!("CARGO_BIN_EXE_jackline");
    let shown = |args: &str| {
        let line = format!("{program} repository backup . {args}");
        let script = ["--quiet", "--return", "--command", &line, "/dev/null"];
        success(place.command("script").args(script).output().unwrap())
    };
    let people = shown("");
    // How far it comes before it is looked at is the machine's.
    let bar = ['░', '█'];
    assert!(
        people.contains("backup  ") && people.contains(bar),
        "{people}"
    );
    let programs = shown("--json");
    assert!(!programs.contains(bar), "{programs}");
    let piped = place.jackline(&["backup", "."]).output().unwrap();
    assert!(!String::from_utf8_lossy(&piped.stderr).contains('█'));
}
