//! Single objects of the cluster, of any kind, with patience for an API server that is busy.

use std::time::Duration;

use jackline_crds::names::FIELD_MANAGER;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, Request},
};
use serde_json::Value;

use crate::uri::encoded;

/// How often a request is repeated that failed for no fault of its own.
const ATTEMPTS: u32 = 5;

/// Objects of one kind in one namespace (or outside of namespaces).
#[derive(Clone)]
pub struct Objects {
    client: Client,
    api: Api<DynamicObject>,
    path: String,
}

impl Objects {
    /// `namespace` for kinds that have one.
    pub fn new(client: &Client, resource: &ApiResource, namespace: Option<&str>) -> Self {
        let path = DynamicObject::url_path(resource, namespace);
        let client = client.clone();
        let api = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
            None => Api::all_with(client.clone(), resource),
        };
        Self { client, api, path }
    }

    /// The object as it is; `None` if it is not there.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn get(&self, name: &str) -> Result<Option<Value>, kube::Error> {
        let name = encoded(name);
        let found = patiently(|| self.api.get_opt(&name)).await?;
        found
            .map(|object| serde_json::to_value(object).map_err(kube::Error::SerdeError))
            .transpose()
    }

    /// Makes the object in the name of `manager`, who then owns its fields; `None` if one of its name is there already. The API server
    /// may refuse an object before it sees that: for a node port or an address that the one which is there has, for a quota, or because
    /// a webhook says so.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(
        &self,
        object: &Value,
        manager: &str,
    ) -> Result<Option<Value>, kube::Error> {
        let body = escaped(object);
        let params = PostParams {
            field_manager: Some(manager.to_owned()),
            ..PostParams::default()
        };
        let send = || async {
            let request = Request::new(&self.path)
                .create(&params, body.clone().into_bytes())
                .map_err(kube::Error::BuildRequest)?;
            self.client.request::<DynamicObject>(request).await
        };
        match patiently(send).await {
            Ok(made) => serde_json::to_value(made)
                .map(Some)
                .map_err(kube::Error::SerdeError),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(None),
            Err(error) if is_refusal(&error) => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                match self.get(name).await {
                    Ok(Some(_)) => Ok(None),
                    // The refusal says more than what came after it.
                    Ok(None) | Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Merge-patches the object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<(), kube::Error> {
        let (params, patch, name) = (params(), Patch::Merge(patch), encoded(name));
        patiently(|| self.api.patch(&name, &params, &patch))
            .await
            .map(|_| ())
    }

    /// Merge-patches the object's status.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn patch_status(&self, name: &str, patch: &Value) -> Result<(), kube::Error> {
        let (params, patch, name) = (params(), Patch::Merge(patch), encoded(name));
        patiently(|| self.api.patch_status(&name, &params, &patch))
            .await
            .map(|_| ())
    }
}

/// JSON with the escapes that Go's encoder makes. Where an object holds raw JSON (the data of a ControllerRevision), the API server
/// keeps our bytes, and the next Go client that writes the object back would change them: data that must never change.
fn escaped(object: &Value) -> String {
    // These characters occur inside of strings only.
    let mut text = String::new();
    for character in object.to_string().chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            other => text.push(other),
        }
    }
    text
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

/// Repeats a request while the API server is overloaded or cannot be reached.
pub async fn patiently<T, F>(request: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let mut attempt = 1;
    loop {
        match request().await {
            Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                tokio::time::sleep(Duration::from_millis(200) * 2_u32.pow(attempt)).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// Whether the API server has looked at the object and does not want it.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code))
        && !is_passing(error)
}

/// Whether the error says nothing about the request.
pub fn is_passing(error: &kube::Error) -> bool {
    match error {
        // A namespace that was just made may not be known everywhere, nor its quota be counted.
        kube::Error::Api(status) => {
            status.code == 429
                || status.code >= 500
                || (status.code == 403
                    && status.message.contains("quota")
                    && status.message.contains("wait"))
        }
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible, sync::Arc};

    use http::{Request as HttpRequest, Response};
    use k8s_openapi::api::core::v1::Service;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_is_refused_but_is_there_already_exists() {
        const TAKEN: &str =
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated";
        let refusal = |code: u16, reason: &str, message: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
                "message": message, "metadata": {}});
            (code, status.to_string())
        };
        let taken = || refusal(422, "Invalid", TAKEN);
        let quota = || refusal(403, "Forbidden", "exceeded quota: small");
        let absent = || refusal(404, "NotFound", "not found");
        let there = || {
            let service =
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}});
            (200, service.to_string())
        };
        let table = [
            (vec![there()], Ok(true), "POST"),
            (
                vec![refusal(409, "AlreadyExists", "it is there")],
                Ok(false),
                "POST",
            ),
            (vec![taken(), there()], Ok(false), "POST GET"),
            (vec![taken(), absent()], Err(TAKEN), "POST GET"),
            (vec![quota(), there()], Ok(false), "POST GET"),
            (
                vec![quota(), absent()],
                Err("exceeded quota: small"),
                "POST GET",
            ),
            (
                vec![quota(), refusal(403, "Forbidden", "no")],
                Err("exceeded quota: small"),
                "POST GET",
            ),
        ];
        for (answers, expected, asked) in table {
            let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
            let methods = Arc::new(Mutex::new(Vec::new()));
            let seen = methods.clone();
            let answer = move |request: HttpRequest<Body>| {
                seen.lock().push(request.method().to_string());
                let (code, body) = answers.lock().pop_front().unwrap();
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(body.into_bytes()));
                async move { Ok::<_, Infallible>(response.unwrap()) }
            };
            let client = Client::new(tower::service_fn(answer), "default");
            let objects = Objects::new(&client, &ApiResource::erase::<Service>(&()), Some("shop"));
            let made = objects
                .create(&json!({"metadata": {"name": "web"}}), FIELD_MANAGER)
                .await;
            let found = match &made {
                Ok(made) => Ok(made.is_some()),
                Err(kube::Error::Api(status)) => Err(&*status.message),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(found, expected);
            assert_eq!(methods.lock().join(" "), asked);
        }
    }

    #[test]
    fn raw_data_is_sent_as_go_would_send_it() {
        let object = serde_json::json!({"data": {"command": "echo a > b && c < \u{2028}"}});
        let text = escaped(&object);
        assert_eq!(
            text,
            r#"{"data":{"command":"echo a \u003e b \u0026\u0026 c \u003c \u2028"}}"#
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), object);
    }
}
