//! The proxy in front of a small server of our own: it changes nothing, and strikes as it was told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jackline_faults::{Fault, Plan, Proxy, When};

/// Answers every request whose body arrives whole with the `Host` header and the body. Returns how many did.
fn server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                seen.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&seen).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let header = |name: &str| {
                        let line = head.lines().find(|l| l.to_lowercase().starts_with(name));
                        line.and_then(|l| l.split_once(": "))
                            .map(|(_, v)| v.to_owned())
                    };
                    let length = header("content-length").map_or(0, |v| v.parse().unwrap());
                    if body.len() == length {
                        break Some(format!("{} {body}", header("host").unwrap()));
                    }
                }
                if read == 0 {
                    break None;
                }
            };
            if let Some(body) = body {
                count.fetch_add(1, Ordering::SeqCst);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        }
    });
    (address, served)
}

/// Sends one request and returns all that comes back.
fn ask(proxy: &Proxy) -> String {
    let address = proxy.endpoint().replace("http://", "");
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "PUT /bucket/key HTTP/1.1\r\nHost: s3.example\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

async fn struck_once(when: When, fault: Fault) -> (String, String, usize) {
    let (address, served) = server();
    let proxy = Proxy::start(address, Some(Plan::once(2, when, fault)))
        .await
        .unwrap();
    let proxy = Arc::new(proxy);
    let mut answers = Vec::new();
    for _ in 0..3 {
        let proxy = Arc::clone(&proxy);
        answers.push(
            tokio::task::spawn_blocking(move || ask(&proxy))
                .await
                .unwrap(),
        );
    }
    proxy.settled().await;
    assert_eq!(answers[0], answers[2], "the others pass");
    assert!(answers[0].ends_with("s3.example body"), "{}", answers[0]);
    assert_eq!(proxy.requests(), ["PUT /bucket/key"; 3]);
    assert_eq!(proxy.struck().as_deref(), Some("PUT /bucket/key"));
    let served = served.load(Ordering::SeqCst) - 2;
    (answers.swap_remove(0), answers.swap_remove(1), served)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_takes_effect_on_the_side_it_was_planned_for() {
    for (when, reached) in [(When::Before, 0), (When::After, 1)] {
        let (_, dropped, served) = struck_once(when, Fault::Drop).await;
        assert_eq!((&*dropped, served), ("", reached));
        let (_, refused, served) = struck_once(when, Fault::Unavailable).await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert_eq!(served, reached);
        let (whole, cut, served) = struck_once(when, Fault::Truncate).await;
        assert!(cut.len() < whole.len() && whole.starts_with(&cut), "{cut}");
        assert_eq!(served, reached);
        let time = Duration::from_millis(200);
        let started = Instant::now();
        let (whole, late, served) = struck_once(when, Fault::Delay(time)).await;
        assert!(whole == late && served == 1 && started.elapsed() >= time);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_it_is_aimed_at_dies_at_the_planned_request() {
    for (when, reached) in [(When::Before, 0), (When::After, 1)] {
        let (address, served) = server();
        let plan = Plan::once(1, when, Fault::Kill);
        let proxy = Arc::new(Proxy::start(address, Some(plan)).await.unwrap());
        let asker = Arc::clone(&proxy);
        let asked = tokio::task::spawn_blocking(move || ask(&asker));
        let mut victim = Command::new("sleep").arg("60").spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            victim.try_wait().unwrap().is_none(),
            "nobody is killed unnamed"
        );
        proxy.aim(victim.id());
        assert_eq!(asked.await.unwrap(), "");
        assert!(!victim.wait().unwrap().success());
        assert_eq!(served.load(Ordering::SeqCst), reached);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_a_slow_line_come_one_after_the_other() {
    let (address, _) = server();
    let proxy = Arc::new(Proxy::start(address, None).await.unwrap());
    let three = async || {
        let started = Instant::now();
        let asked = (0..3).map(|_| {
            let proxy = Arc::clone(&proxy);
            tokio::task::spawn_blocking(move || ask(&proxy))
        });
        for asked in asked.collect::<Vec<_>>() {
            assert!(asked.await.unwrap().ends_with("s3.example body"));
        }
        started.elapsed()
    };
    proxy.slow(&["PUT", "/elsewhere"], 1);
    let quick = three().await;
    assert!(quick < Duration::from_secs(2), "{quick:?}");
    // Four bytes there and fifteen back, three times.
    proxy.slow(&["PUT", "/bucket"], 100);
    let slow = three().await;
    assert!(slow >= Duration::from_millis(570), "{slow:?}");
}
