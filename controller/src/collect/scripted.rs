//! An API server for tests that answers what it is told to.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use http::{Request, Response};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// Answers: status and body, in the order in which they are given; each request's URI is kept.
#[derive(Clone, Default)]
pub(super) struct Server {
    answers: Arc<Mutex<VecDeque<(u16, String)>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(super) fn new(answers: impl IntoIterator<Item = (u16, String)>) -> Self {
        Self {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            asked: Arc::default(),
        }
    }

    /// What was asked for.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }

    /// A client of this server.
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let answer = move |request: Request<Body>| {
            server.asked.lock().push(request.uri().to_string());
            let answer = server.answers.lock().pop_front();
            async move {
                let (status, body) = answer.unwrap_or((500, "nothing is left to say".to_owned()));
                let body = Body::from(body.into_bytes());
                let response = Response::builder().status(status).body(body).unwrap();
                Ok::<_, Infallible>(response)
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }
}

/// A page of objects that have these names, and the token of the next.
pub(super) fn page(names: &[&str], token: &str) -> (u16, String) {
    let items = names.iter().map(|name| json!({"metadata": {"name": name}}));
    let items: Vec<Value> = items.collect();
    let page = json!({"metadata": {"continue": token}, "items": items});
    (200, page.to_string())
}

/// A refusal, with more of what its status says.
pub(super) fn refusal(code: u16, more: Value) -> (u16, String) {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "no", "reason": "", "metadata": {}});
    for (key, value) in more.as_object().into_iter().flatten() {
        status[key] = value.clone();
    }
    (code, status.to_string())
}
