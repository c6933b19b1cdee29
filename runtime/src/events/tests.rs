use http::{Request, Response};
use kube::client::Body;
use serde_json::Value;
use tower_test::mock;

use super::*;
use crate::metrics::for_tests;

fn event(note: &str) -> Event {
    Event {
        regarding: ObjectReference {
            uid: Some("u1".to_owned()),
            name: Some("web".to_owned()),
            namespace: Some("n".to_owned()),
            ..ObjectReference::default()
        },
        related: None,
        kind: EventKind::Warning,
        reason: "VolumeBackupFailed",
        action: "Backup",
        note: note.to_owned(),
    }
}

#[test]
fn notes_are_cut_between_characters() {
    assert_eq!(cut("aüb", 2), "a");
    assert_eq!(cut("aüb", 3), "aü");
    assert_eq!(cut("ab", 10), "ab");
}

#[tokio::test(start_paused = true)]
async fn the_same_text_is_said_once_and_a_new_one_at_once() {
    let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    let stop = CancellationToken::new();
    let client = Client::new(service, "n");
    let (events, writer) = Events::new(
        client,
        "jackline.dev/test",
        "host",
        for_tests(),
        stop.clone(),
    );
    let writer = tokio::spawn(writer);
    let server = tokio::spawn(async move {
        let mut notes = Vec::new();
        while let Some((request, send)) = handle.next_request().await {
            let bytes = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&bytes).unwrap();
            notes.push(body["note"].as_str().unwrap().to_owned());
            assert_eq!(body["reportingController"], "jackline.dev/test");
            assert_eq!(body["type"], "Warning");
            send.send_response(Response::new(Body::from(bytes.to_vec())));
        }
        notes
    });
    events.publish(event("disk gone"));
    events.publish(event("disk gone"));
    events.publish(event("another disk gone"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    events.forget("u1", "VolumeBackupFailed");
    events.publish(event("another disk gone"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.cancel();
    writer.await.unwrap();
    drop(events);
    assert_eq!(
        server.await.unwrap(),
        ["disk gone", "another disk gone", "another disk gone"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_api_server_never_blocks_the_work() {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    let metrics = for_tests();
    let client = Client::new(service, "n");
    let (events, writer) = Events::new(
        client,
        "c",
        "host",
        metrics.clone(),
        CancellationToken::new(),
    );
    tokio::spawn(writer);
    for n in 0..1000 {
        events.publish(event(&n.to_string()));
    }
    assert!(metrics.families.events_lost.get() > 500);
    drop(handle);
}
