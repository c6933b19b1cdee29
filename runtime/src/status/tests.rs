use serde_json::json;

use super::*;

#[test]
fn the_same_is_not_written() {
    let status = json!({"phase": "Completed", "progress": {"totalBytes": 5}});
    assert_eq!(difference(&status, &status), None);
    assert_eq!(
        difference(
            &json!({"phase": "New", "message": null}),
            &json!({"phase": "New"})
        ),
        None
    );
    assert_eq!(difference(&Value::Null, &Value::Null), None);
}

#[test]
fn only_what_differs_is_written_and_what_is_gone_is_removed() {
    let before = json!({"phase": "InProgress", "message": "x", "progress": {"totalBytes": 5, "bytesDone": 1}});
    let after = json!({"phase": "InProgress", "progress": {"totalBytes": 5, "bytesDone": 2}});
    assert_eq!(
        difference(&before, &after),
        Some(json!({"message": null, "progress": {"bytesDone": 2}}))
    );
    let first = json!({"phase": "New", "message": null});
    assert_eq!(
        difference(&Value::Null, &first),
        Some(json!({"phase": "New"}))
    );
    assert_eq!(
        difference(&json!({"errors": [1]}), &json!({"errors": [1, 2]})),
        Some(json!({"errors": [1, 2]}))
    );
}

#[test]
fn metadata_that_is_there_is_not_written_again() {
    let metadata = json!({"labels": {"a": "1", "b": "2"}});
    assert!(contains(&metadata, &json!({"labels": {"a": "1"}})));
    assert!(!contains(&metadata, &json!({"labels": {"a": "2"}})));
    assert!(contains(&metadata, &json!({"labels": {"c": null}})));
    assert!(!contains(&metadata, &json!({"labels": {"a": null}})));
}

mod scripted {
    use http::{Request, Response};
    use k8s_openapi::api::core::v1::Pod;
    use kube::{Client, client::Body};
    use tower_test::mock;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u1", "resourceVersion": "7"},
            "status": {"phase": "Running"},
        }))
        .unwrap()
    }

    /// Answers one request and gives (path with query, body).
    async fn one(
        code: u16,
        answer: Value,
        guard: Guard,
    ) -> (Result<Option<Pod>, StatusError>, (String, Value)) {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let server = tokio::spawn(async move {
            let (request, send) = handle.next_request().await.expect("one request");
            let (parts, body) = request.into_parts();
            let body = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
            let response = Response::builder()
                .status(code)
                .body(Body::from(serde_json::to_vec(&answer).unwrap()));
            send.send_response(response.unwrap());
            (parts.uri.to_string(), body)
        });
        let api = Api::<Pod>::namespaced(Client::new(service, "n"), "n");
        let desired = json!({"phase": "Failed"});
        let result = write_status(&api, &pod(), &desired, StatusAt::Main, guard, "tester").await;
        (result, server.await.unwrap())
    }

    #[tokio::test]
    async fn the_object_that_was_looked_at_is_meant() {
        let answer = serde_json::to_value(pod()).unwrap();
        let (result, (path, body)) = one(200, answer.clone(), Guard::SameVersion).await;
        assert!(result.unwrap().is_some());
        assert!(
            path.contains("/namespaces/n/pods/p?") && path.contains("fieldManager=tester"),
            "{path}"
        );
        let expected = json!({"metadata": {"uid": "u1", "resourceVersion": "7"}, "status": {"phase": "Failed"}});
        assert_eq!(body, expected);
        let (_, (_, body)) = one(200, answer, Guard::SameObject).await;
        assert_eq!(body["metadata"], json!({"uid": "u1"}));
    }

    #[tokio::test]
    async fn a_gone_or_replaced_object_is_told_from_a_conflict() {
        let status = |code: u16, message: &str| json!({"kind": "Status", "status": "Failure", "code": code, "reason": "", "message": message});
        let (gone, _) = one(404, status(404, "not found"), Guard::SameObject).await;
        assert!(matches!(gone, Err(StatusError::Gone(_))));
        let uid = "Operation cannot be fulfilled: Precondition failed: UID in precondition: u1, UID in object meta: u2";
        let (replaced, _) = one(409, status(409, uid), Guard::SameObject).await;
        assert!(matches!(replaced, Err(StatusError::Gone(_))));
        let (conflict, _) = one(
            409,
            status(409, "the object has been modified"),
            Guard::SameVersion,
        )
        .await;
        let failure = crate::Failure::from(conflict.unwrap_err());
        assert_eq!(failure.class, crate::Class::Conflict);
    }

    #[tokio::test]
    async fn no_difference_no_request() {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let api = Api::<Pod>::namespaced(Client::new(service, "n"), "n");
        let desired = json!({"phase": "Running"});
        let result = write_status(
            &api,
            &pod(),
            &desired,
            StatusAt::Main,
            Guard::SameObject,
            "tester",
        )
        .await;
        assert!(result.unwrap().is_none());
        drop(api);
        assert!(handle.next_request().await.is_none());
    }
}
