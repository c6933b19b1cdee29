//! A repository in a bucket, addressed as restic addresses it, with both programs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SECRET: &str = "canary-secret-key";

/// A MinIO that ends with this value.
struct Minio {
    process: Child,
    endpoint: String,
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Minio {
    fn start(directory: &Path) -> Minio {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let process = Command::new(jackline_test_cluster::minio().unwrap())
            .args(["server", "--quiet", "--address", &free.to_string()])
            .args(["--console-address", "127.0.0.1:0"])
            .arg(directory.join("minio"))
            .envs([
                ("MINIO_ROOT_USER", "jackline"),
                ("MINIO_ROOT_PASSWORD", SECRET),
            ])
            .envs([("MINIO_BROWSER", "off"), ("MINIO_UPDATE", "off")])
            .env("HOME", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let minio = Minio {
            process,
            endpoint: format!("http://{free}"),
        };
        let started = Instant::now();
        while TcpStream::connect(free).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "MinIO does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        minio
    }
}

fn success(output: Output) -> String {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(!said.contains(SECRET), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn both_programs_share_a_repository_in_a_bucket() {
    let directory = tempfile::tempdir().unwrap();
    let minio = Minio::start(directory.path());
    let repository = format!("s3:{}/bucket/restic/ns", minio.endpoint);
    let source = directory.path().join("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    std::fs::write(source.join("sub/file"), vec![7; 5 << 20]).unwrap();
    let call = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        if program != "restic" {
            command.arg("repository");
        }
        command
            .args(args)
            .current_dir(&source)
            .env("RESTIC_REPOSITORY", &repository)
            .env("RESTIC_PASSWORD", "secret")
            .env("RESTIC_CACHE_DIR", directory.path().join("cache"))
            .env("AWS_ACCESS_KEY_ID", "jackline")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env_remove("AWS_DEFAULT_REGION")
            .stdin(Stdio::null());
        command.output().unwrap()
    };
    let jackline = env!("CARGO_BIN_EXE_jackline");

    let nothing = call(jackline, &["snapshots"]);
    assert!(!nothing.status.success(), "there is no bucket yet");
    // restic makes the bucket too; a server that has just begun to listen may need a moment.
    let started = Instant::now();
    while !call("restic", &["init"]).status.success() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "restic cannot make the repository"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        call(jackline, &["init"]).status.code(),
        Some(1),
        "never made anew"
    );
    success(call(jackline, &["backup", ".", "--tag", "ours"]));
    success(call("restic", &["backup", ".", "--tag", "theirs"]));
    success(call("restic", &["check", "--read-data"]));
    success(call(jackline, &["check", "--read-data"]));
    for (program, tag) in [(jackline, "theirs"), ("restic", "ours")] {
        let target = directory.path().join(format!("restored-{tag}"));
        let to = target.to_str().unwrap();
        success(call(
            program,
            &["restore", "latest", "--tag", tag, "--target", to],
        ));
        let found = std::fs::read(target.join("sub/file")).unwrap();
        assert!(found == vec![7; 5 << 20], "{tag}");
    }
    let wrong = Command::new(jackline)
        .args(["repository", "snapshots", "--json"])
        .env("RESTIC_REPOSITORY", &repository)
        .env("RESTIC_PASSWORD", "secret")
        .env("AWS_ACCESS_KEY_ID", "jackline")
        .env("AWS_SECRET_ACCESS_KEY", "canary-wrong")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(1), "{said}");
    assert!(
        said.contains("access denied") && !said.contains("canary"),
        "{said}"
    );
}
