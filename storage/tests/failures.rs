//! What an S3 store does when the other side is wrong, slow, gone or lying.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use jackline_storage::s3::{Credentials, S3Config, S3Store, Timeouts};
use jackline_storage::{Error, LocationConfig, ObjectStore, layout, open_location};
use support::{Minio, SECRET, free_port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Deadlines short enough for a test.
fn hasty() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(2),
        idle: Duration::from_millis(500),
        slowest: 1 << 20,
        attempts: 3,
    }
}

fn config_at(endpoint: String) -> S3Config {
    let mut config = S3Config::new("bucket");
    config.endpoint = Some(endpoint);
    config.path_style = true;
    config.region = Some("us-east-1".into());
    config.credentials = Credentials::Key {
        id: "id".into(),
        secret: SECRET.into(),
    };
    config.timeouts = hasty();
    config
}

/// A server that answers the n-th connection with the n-th text, the last one for ever, and counts.
async fn scripted(answers: Vec<&'static str>) -> (String, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        for index in 0.. {
            let (mut socket, _) = listener.accept().await.unwrap();
            count.send_replace(index + 1);
            let answer = answers[index.min(answers.len() - 1)];
            tokio::spawn(async move {
                let mut request = [0; 16 << 10];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(answer.as_bytes()).await;
                let _ = socket.shutdown().await;
            });
        }
    });
    (endpoint, counted)
}

const BUSY: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const WHOLE: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"e\"\r\nConnection: close\r\n\r\n0123456789";
const TRUNCATED: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"e\"\r\nConnection: close\r\n\r\n01234";
const REST: &str = "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\
    Content-Range: bytes 5-9/10\r\nETag: \"e\"\r\nConnection: close\r\n\r\n56789";

#[tokio::test]
async fn a_wrong_bucket_is_named() {
    let minio = Minio::start().await;
    minio.config("right").await;
    let store = S3Store::connect(minio.config_without_bucket("wrong"))
        .await
        .unwrap();
    let errors = [
        layout::validate(&store).await.unwrap_err(),
        store.put("key", Bytes::new()).await.unwrap_err(),
        store.get("key").await.unwrap_err(),
        store.list("").try_collect::<Vec<_>>().await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.reason(), "NoSuchBucket", "{error}");
        assert!(
            !error.is_retryable() && error.to_string().contains("/wrong"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_never_shown() {
    let minio = Minio::start().await;
    let mut config = minio.config("bucket").await;
    config.credentials = Credentials::Key {
        id: "jackline".into(),
        secret: "canary-wrong".into(),
    };
    let debug = format!("{config:?}");
    let store = S3Store::connect(config).await.unwrap();
    let error = store.list_level("").await.unwrap_err();
    assert_eq!(error.reason(), "AccessDenied", "{error}");
    assert!(!error.is_retryable());
    let shown = format!("{debug} {store:?} {error:?} {error}");
    assert!(!shown.contains("canary"), "{shown}");
}

#[tokio::test]
async fn a_location_without_its_profile_is_denied_without_showing_the_file() {
    let minio = Minio::start().await;
    minio.config("bucket").await;
    let location = |content: &str| LocationConfig {
        provider: "aws".into(),
        bucket: "bucket".into(),
        config: [
            ("region", "minio"),
            ("s3Url", &minio.endpoint),
            ("s3ForcePathStyle", "true"),
        ]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into(),
        credentials_file: Some(content.into()),
        ..Default::default()
    };
    let store = open_location(location(&minio.credentials_file()))
        .await
        .unwrap();
    layout::validate(&*store).await.unwrap();
    for broken in [
        "",
        "[other]\naws_access_key_id = a\naws_secret_access_key = canary\n",
        "[default]\naws_secret_access_key = canary\n",
        "[default]\naws_access_key_id = a\ncanary\n",
        "canary",
    ] {
        let store = open_location(location(broken)).await.unwrap();
        let error = store.list_level("").await.unwrap_err();
        assert_eq!(error.reason(), "AccessDenied", "{broken:?}: {error}");
        let shown = format!("{error} {error:?} {store:?}");
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_an_error_soon() {
    let started = Instant::now();
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let store = S3Store::connect(config_at(endpoint.clone())).await.unwrap();
    let error = store.get("key").await.unwrap_err();
    assert_eq!(error.reason(), "Unreachable", "{error}");
    assert!(
        error.is_retryable() && error.to_string().contains(&endpoint),
        "{error}"
    );
    let mut nowhere = config_at("http://no-such-host.invalid:9000".into());
    nowhere.region = None;
    let store = S3Store::connect(nowhere).await.unwrap();
    let error = store.head("key").await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_server_that_never_answers_holds_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let hole = tokio::spawn(async move {
        let mut sockets = Vec::new();
        loop {
            sockets.push(listener.accept().await.unwrap());
        }
    });
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), support::noise(17 << 20)).unwrap();
    let started = Instant::now();
    let calls = futures::join!(
        async { store.get("a").await.map(drop) },
        async { store.put("b", Bytes::from_static(b"1")).await },
        async { store.put_if_absent("c", Bytes::new()).await.map(drop) },
        async { store.head("d").await.map(drop) },
        async { store.list("e").try_collect::<Vec<_>>().await.map(drop) },
        async { store.delete("f").await },
        async { store.upload("g", file.path()).await.map(drop) },
        async { store.delete_prefix("h").await.map(drop) },
    );
    let results = [
        calls.0, calls.1, calls.2, calls.3, calls.4, calls.5, calls.6, calls.7,
    ];
    for result in results {
        assert_eq!(result.unwrap_err().reason(), "Timeout");
    }
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    hole.abort();
}

#[tokio::test]
async fn a_body_that_stops_flowing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut sockets = Vec::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 16 << 10]).await;
            let _ = socket.write_all(TRUNCATED.as_bytes()).await;
            sockets.push(socket);
        }
    });
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let started = Instant::now();
    let error = store.get("key").await.unwrap_err();
    assert_eq!(error.reason(), "Timeout", "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_truncated_body_is_asked_for_again_and_never_accepted() {
    let (endpoint, _) = scripted(vec![TRUNCATED, TRUNCATED, WHOLE]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    assert_eq!(store.get("key").await.unwrap(), "0123456789");

    let (endpoint, count) = scripted(vec![TRUNCATED]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let error = store.get("key").await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(*count.borrow(), 3, "attempts are bounded");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_ended() {
    let (endpoint, _) = scripted(vec![TRUNCATED, REST]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(store.download("key", file.path()).await.unwrap(), 10);
    assert_eq!(std::fs::read(file.path()).unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_not_believed() {
    let (endpoint, _) = scripted(vec![WHOLE]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let error = store.get_range("key", 2..4).await.unwrap_err();
    assert_eq!(error.reason(), "ShortRead", "{error}");
}

#[tokio::test]
async fn an_overloaded_server_is_asked_again() {
    let (endpoint, count) = scripted(vec![BUSY, BUSY, WHOLE]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    assert_eq!(store.get("key").await.unwrap(), "0123456789");
    assert_eq!(*count.borrow(), 3);

    let (endpoint, count) = scripted(vec![BUSY]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let error = store.put("key", Bytes::new()).await.unwrap_err();
    assert_eq!(error.reason(), "ServerBusy", "{error}");
    assert!(error.is_retryable());
    assert_eq!(*count.borrow(), 3, "attempts are bounded");
}

#[tokio::test]
async fn an_object_created_before_its_answer_got_lost_counts_as_ours() {
    const NONE: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const LOST: &str = "";
    const THERE: &str =
        "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    for (body, ours) in [("0123456789", true), ("another's.", false)] {
        let (endpoint, _) = scripted(vec![NONE, LOST, THERE, WHOLE]).await;
        let store = S3Store::connect(config_at(endpoint)).await.unwrap();
        assert_eq!(
            store
                .put_if_absent("key", Bytes::from_static(body.as_bytes()))
                .await
                .unwrap(),
            ours
        );
    }
    let (endpoint, _) = scripted(vec![NONE, THERE]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    assert!(
        !store
            .put_if_absent("key", Bytes::from_static(b"0123456789"))
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_listing_that_is_cut_without_a_token_is_an_error() {
    const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 115\r\nConnection: close\r\n\r\n\
        <ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a</Key><Size>1</Size>\
        </Contents></ListBucketResult>";
    let (endpoint, _) = scripted(vec![CUT]).await;
    let store = S3Store::connect(config_at(endpoint)).await.unwrap();
    let error = store.list("").try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("cut the listing"), "{error}");
}

#[tokio::test]
async fn the_region_is_asked_from_the_server() {
    const LOCATION: &str = "HTTP/1.1 200 OK\r\nContent-Length: 60\r\nConnection: close\r\n\r\n\
        <LocationConstraint>eu-far-1</LocationConstraint>           ";
    let (endpoint, _) = scripted(vec![LOCATION]).await;
    let mut config = config_at(endpoint);
    config.region = None;
    let store = S3Store::connect(config).await.unwrap();
    let url = store
        .presign_get("key", Duration::from_secs(60))
        .await
        .unwrap();
    assert!(url.contains("%2Feu-far-1%2Fs3%2F"), "{url}");
}

#[tokio::test]
async fn a_presigned_url_is_for_everybody_and_names_the_public_host() {
    let minio = Minio::start().await;
    let mut config = minio.config("bucket").await;
    config.prefix = "p".into();
    let store = S3Store::connect(config.clone()).await.unwrap();
    store
        .put("backups/b/b-logs.gz", Bytes::from_static(b"log"))
        .await
        .unwrap();
    let url = store
        .presign_get("backups/b/b-logs.gz", Duration::from_secs(600))
        .await
        .unwrap();
    assert!(
        url.starts_with(&format!("{}/bucket/p/backups/b/b-logs.gz?", minio.endpoint)),
        "{url}"
    );
    assert!(
        url.contains("X-Amz-Expires=600") && !url.contains(SECRET),
        "{url}"
    );
    assert!(http_get(&url).await.ends_with("\r\n\r\nlog"));
    config.public_url = Some("https://s3.example.com".into());
    let store = S3Store::connect(config).await.unwrap();
    let url = store
        .presign_get("backups/b/b-logs.gz", Duration::from_secs(600))
        .await
        .unwrap();
    assert!(
        url.starts_with("https://s3.example.com/bucket/p/backups/b/"),
        "{url}"
    );
    // The store itself goes on talking to the server's own address.
    assert_eq!(store.get("backups/b/b-logs.gz").await.unwrap(), "log");
}

async fn http_get(url: &str) -> String {
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let mut socket = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn certificates_are_checked_unless_told_otherwise() {
    certificate_is_checked(rcgen::IsCa::NoCa).await;
    // As `openssl req -x509` makes one: the server's own, and an authority.
    certificate_is_checked(rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)).await;
}

async fn certificate_is_checked(authority: rcgen::IsCa) {
    let mut parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    parameters.is_ca = authority;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap().pem();
    let other = parameters.self_signed(&rcgen::KeyPair::generate().unwrap());
    let other = other.unwrap().pem();
    let key = key.serialize_pem();
    let minio = Minio::start_with(|certs, _| {
        std::fs::write(certs.join("public.crt"), &certificate).unwrap();
        std::fs::write(certs.join("private.key"), &key).unwrap();
    })
    .await;
    let mut config = minio.config("bucket").await;
    config.timeouts = hasty();
    let stranger = S3Store::connect(config.clone()).await.unwrap();
    let mut mistaken = config.clone();
    mistaken.ca_cert = Some(other.into_bytes());
    let mistaken = S3Store::connect(mistaken).await.unwrap();
    for stranger in [stranger, mistaken] {
        let error = stranger.list_level("").await.unwrap_err();
        assert_eq!(error.reason(), "Unreachable", "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }

    let mut trusting = config.clone();
    trusting.ca_cert = Some(certificate.into_bytes());
    let mut careless = config;
    careless.insecure = true;
    for config in [trusting, careless] {
        let store = S3Store::connect(config).await.unwrap();
        store
            .put("key", Bytes::from_static(b"over TLS"))
            .await
            .unwrap();
        assert_eq!(store.get("key").await.unwrap(), "over TLS");
    }
}

#[test]
fn errors_say_what_to_do_with_them() {
    let location = "s3:http://h/b".to_owned();
    let timeout = Error::Timeout {
        location,
        key: "k".into(),
        after: Duration::from_secs(5),
    };
    assert!(timeout.is_retryable());
    assert_eq!(timeout.to_string(), "s3:http://h/b: k: no answer within 5s");
}
