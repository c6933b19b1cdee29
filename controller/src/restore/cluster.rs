//! Single objects of the cluster, of any kind, with patience for an API server that is busy.

use std::time::Duration;

use jackline_crds::names::FIELD_MANAGER;
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, Request},
};
use serde_json::Value;

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

    /// Makes the object; `None` if one of its name is there already.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn create(&self, object: &Value) -> Result<Option<Value>, kube::Error> {
        let body = escaped(object);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
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

/// A name as a part of a URL. A few kinds take nearly any name (a Role `a?b`), and the client leaves it as it is.
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => {
                text.push(char::from(byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
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
    use super::*;

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

    #[test]
    fn a_name_stays_one_part_of_the_url() {
        assert_eq!(encoded("system:node-1.example"), "system:node-1.example");
        assert_eq!(
            encoded("victim?x#y/z%2f ä"),
            "victim%3Fx%23y%2Fz%252f%20%C3%A4"
        );
    }
}
