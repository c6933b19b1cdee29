//! Reading lists as streams: one object at a time, never a whole page in memory.

use std::{
    fmt,
    io::{self, BufReader, Read},
};

use futures::AsyncReadExt;
use kube::{Client, core::Request as ApiRequest};
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use tokio::sync::mpsc;

/// Bytes handed from the network to the parser at once.
const CHUNK: usize = 64 << 10;
/// Chunks that may wait for the parser.
const CHUNKS: usize = 8;
/// A list whose token has expired is begun again this often.
const RESTARTS: u32 = 3;

/// Why a list could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The API server said no.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The connection broke, or the list is no JSON.
    #[error("the list cannot be read: {0}")]
    Read(String),
    /// Temporary files cannot be written.
    #[error("temporary files cannot be written")]
    Spool(#[from] io::Error),
    /// The request cannot be made.
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    /// The parser died.
    #[error("the parser of a list ended unexpectedly")]
    Parser,
}

impl ListError {
    /// Whether the server said that there is no such thing.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == 404 || status.code == 405)
    }
}

/// What to list.
#[derive(Debug, Clone)]
pub(super) struct ListSpec {
    /// `/api/v1/namespaces/x/pods`.
    pub(super) path: String,
    /// Label selector.
    pub(super) selector: Option<String>,
    /// Objects per page.
    pub(super) page: u32,
}

/// Lists all pages and hands each object to `each`, which is moved to the thread that parses and comes back at the end.
pub(super) async fn list<S>(
    client: &Client,
    spec: &ListSpec,
    mut state: S,
    each: fn(&mut S, Value) -> io::Result<()>,
) -> Result<S, ListError>
where
    S: Send + 'static,
{
    let mut token: Option<String> = None;
    let mut restarts = 0;
    loop {
        let result = page(client, spec, token.as_deref(), state, each).await;
        match result {
            (Some(back), Ok(next)) => {
                state = back;
                match next {
                    Some(next) => token = Some(next),
                    None => return Ok(state),
                }
            }
            // The list's version is too old by now. What was read stays; names that are known are not taken twice.
            (Some(back), Err(ListError::Api(kube::Error::Api(status))))
                if status.code == 410 && restarts < RESTARTS =>
            {
                state = back;
                token = None;
                restarts += 1;
            }
            (_, Err(error)) => return Err(error),
            (None, Ok(_)) => return Err(ListError::Parser),
        }
    }
}

async fn page<S>(
    client: &Client,
    spec: &ListSpec,
    token: Option<&str>,
    mut state: S,
    each: fn(&mut S, Value) -> io::Result<()>,
) -> (Option<S>, Result<Option<String>, ListError>)
where
    S: Send + 'static,
{
    let request = match request(spec, token) {
        Ok(request) => request,
        Err(error) => return (Some(state), Err(error)),
    };
    let mut stream = match client.request_stream(request).await {
        Ok(stream) => Box::pin(stream),
        Err(error) => return (Some(state), Err(error.into())),
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(CHUNKS);
    let parser = tokio::task::spawn_blocking(move || {
        let reader = BufReader::with_capacity(
            CHUNK,
            Chunks {
                receiver,
                current: Vec::new(),
                at: 0,
            },
        );
        let mut parser = serde_json::Deserializer::from_reader(reader);
        let mut failed = None;
        let seed = ListSeed {
            each: &mut |object| {
                each(&mut state, object)
                    .map_err(|error| {
                        failed = Some(error);
                    })
                    .is_ok()
            },
        };
        let result = seed.deserialize(&mut parser);
        let result = match failed {
            Some(error) => Err(ListError::Spool(error)),
            None => result.map_err(|error| ListError::Read(error.to_string())),
        };
        (state, result)
    });
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk = match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => Ok(buffer.get(..read).unwrap_or_default().to_vec()),
            Err(error) => Err(error),
        };
        let broken = chunk.is_err();
        // A parser that has gone says why below.
        if sender.send(chunk).await.is_err() || broken {
            break;
        }
    }
    drop(sender);
    match parser.await {
        Ok((state, result)) => (Some(state), result),
        Err(_) => (None, Err(ListError::Parser)),
    }
}

fn request(spec: &ListSpec, token: Option<&str>) -> Result<http::Request<Vec<u8>>, ListError> {
    let params = kube::api::ListParams {
        label_selector: spec.selector.clone(),
        limit: Some(spec.page),
        continue_token: token.map(str::to_owned),
        ..kube::api::ListParams::default()
    };
    let request = ApiRequest::new(&spec.path).list(&params);
    request.map_err(|error| ListError::Read(error.to_string()))
}

/// The chunks of a body as a reader.
struct Chunks {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => {
                    self.current = chunk?;
                    self.at = 0;
                }
            }
        }
        let rest = self.current.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at += count;
        Ok(count)
    }
}

/// A list object, of which `metadata.continue` and the items matter.
struct ListSeed<'a> {
    each: &'a mut dyn FnMut(Value) -> bool,
}

impl<'de> DeserializeSeed<'de> for ListSeed<'_> {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListSeed<'_> {
    type Value = Option<String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut next = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => {
                    let metadata: Value = map.next_value()?;
                    let token = metadata.get("continue").and_then(Value::as_str);
                    next = token.filter(|token| !token.is_empty()).map(str::to_owned);
                }
                "items" => map.next_value_seed(ItemsSeed {
                    each: &mut *self.each,
                })?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(next)
    }
}

struct ItemsSeed<'a> {
    each: &'a mut dyn FnMut(Value) -> bool,
}

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // An empty list of custom resources may be null.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(object) = seq.next_element::<Value>()? {
            if !(self.each)(object) {
                return Err(serde::de::Error::custom("objects cannot be kept"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> (Result<Option<String>, serde_json::Error>, Vec<Value>) {
        let mut seen = Vec::new();
        let seed = ListSeed {
            each: &mut |object| {
                seen.push(object);
                true
            },
        };
        let result = seed.deserialize(&mut serde_json::Deserializer::from_reader(json.as_bytes()));
        (result, seen)
    }

    #[test]
    fn items_and_token_are_found_in_any_order() {
        let (token, seen) = read(
            r#"{"items":[{"a":1},{"a":2}],"kind":"PodList","metadata":{"continue":"x","resourceVersion":"1"}}"#,
        );
        assert_eq!((token.unwrap().as_deref(), seen.len()), (Some("x"), 2));
        let (token, seen) = read(r#"{"metadata":{"continue":""},"items":null}"#);
        assert_eq!((token.unwrap(), seen.len()), (None, 0));
    }

    #[test]
    fn a_list_that_breaks_off_is_an_error() {
        let (token, seen) = read(r#"{"metadata":{},"items":[{"a":1},{"a""#);
        assert!(token.is_err() && seen.len() == 1);
    }
}
