//! Reading lists as streams: one object at a time, never a whole page in memory.

use std::{
    fmt,
    io::{self, BufReader, Read},
    time::Duration,
};

use futures::AsyncReadExt;
use kube::{Client, core::Request as ApiRequest};
use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use tokio::sync::mpsc;

use super::pages::{Pages, Trouble};

/// Bytes handed from the network to the parser at once.
const CHUNK: usize = 64 << 10;
/// Chunks that may wait for the parser.
const CHUNKS: usize = 8;

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
    /// The kind has gone since discovery.
    #[error("the cluster serves this kind no more")]
    Gone,
}

impl ListError {
    /// Whether the server said that there is no such thing.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == 404)
    }

    /// Whether it might have passed.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.trouble(), Trouble::Passing(_))
    }

    fn trouble(&self) -> Trouble {
        match self {
            Self::Api(kube::Error::Api(status)) => match status.code {
                410 => {
                    let offered = status.metadata.as_ref().and_then(|m| m.continue_.clone());
                    Trouble::Expired(offered.filter(|token| !token.is_empty()))
                }
                429 | 500.. => {
                    let asked = status.details.as_ref().map(|d| d.retry_after_seconds);
                    let asked = asked.filter(|seconds| *seconds > 0);
                    Trouble::Passing(asked.map(|seconds| Duration::from_secs(seconds.into())))
                }
                _ => Trouble::Lasting,
            },
            Self::Api(kube::Error::BuildRequest(_)) => Trouble::Lasting,
            Self::Api(_) | Self::Read(_) => Trouble::Passing(None),
            Self::Spool(_) | Self::Request(_) | Self::Parser | Self::Gone => Trouble::Lasting,
        }
    }
}

/// Who takes the objects of a list.
pub(super) trait Take: Send + 'static {
    /// Takes an object.
    fn take(&mut self, object: Value) -> io::Result<()>;
    /// Objects that were taken may come once more.
    fn again(&mut self);
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
    /// Whether a page that fails in passing is asked for again.
    pub(super) patient: bool,
}

/// Lists all pages and hands each object to `taker`, which is moved to the thread that parses and comes back at the end, with what it
/// has taken even where that is not all. `None`: that thread has died.
pub(super) async fn list<T: Take>(
    client: &Client,
    spec: &ListSpec,
    mut taker: T,
) -> (Option<T>, Result<(), ListError>) {
    let mut pages = Pages::default();
    loop {
        let (back, result) = page(client, spec, &pages, taker).await;
        let Some(back) = back else {
            return (None, result.map(|_| ()));
        };
        taker = back;
        match result {
            Ok(next) => {
                if !pages.read(next) {
                    return (Some(taker), Ok(()));
                }
            }
            Err(error) => {
                let pause = match error.trouble() {
                    Trouble::Passing(_) if !spec.patient => None,
                    trouble => pages.failed(trouble),
                };
                let Some(pause) = pause else {
                    return (Some(taker), Err(error));
                };
                tracing::debug!(path = spec.path, %error, ?pause, "a page is asked for again");
                taker.again();
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn page<T: Take>(
    client: &Client,
    spec: &ListSpec,
    pages: &Pages,
    mut taker: T,
) -> (Option<T>, Result<Option<String>, ListError>) {
    let request = match request(spec, pages) {
        Ok(request) => request,
        Err(error) => return (Some(taker), Err(error)),
    };
    let mut stream = match client.request_stream(request).await {
        Ok(stream) => Box::pin(stream),
        Err(error) => return (Some(taker), Err(error.into())),
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
                taker
                    .take(object)
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
        (taker, result)
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
        Ok((taker, result)) => (Some(taker), result),
        Err(_) => (None, Err(ListError::Parser)),
    }
}

fn request(spec: &ListSpec, pages: &Pages) -> Result<http::Request<Vec<u8>>, ListError> {
    let params = kube::api::ListParams {
        label_selector: spec.selector.clone(),
        limit: (!pages.whole()).then_some(spec.page),
        continue_token: pages.token().map(str::to_owned),
        ..kube::api::ListParams::default()
    };
    let request = ApiRequest::new(&spec.path).list(&params);
    request.map_err(|error| kube::Error::BuildRequest(error).into())
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
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::collect::scripted::{Server, page, refusal};

    /// The names that came, and how often some may have come once more.
    #[derive(Debug, Default)]
    struct Names {
        seen: Vec<String>,
        again: usize,
    }

    impl Take for Names {
        fn take(&mut self, object: Value) -> io::Result<()> {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            self.seen.push(name.to_owned());
            Ok(())
        }

        fn again(&mut self) {
            self.again += 1;
        }
    }

    /// Lists what a server answers: every name, how often something may have come twice, how it ended, and what was asked for.
    async fn listed(
        answers: impl IntoIterator<Item = (u16, String)>,
    ) -> (String, usize, Result<(), ListError>, Vec<String>) {
        listed_by(answers, true).await
    }

    async fn listed_by(
        answers: impl IntoIterator<Item = (u16, String)>,
        patient: bool,
    ) -> (String, usize, Result<(), ListError>, Vec<String>) {
        let server = Server::new(answers);
        let spec = ListSpec {
            path: "/api/v1/pods".to_owned(),
            selector: None,
            page: 2,
            patient,
        };
        let (names, result) = list(&server.client(), &spec, Names::default()).await;
        let Names { seen, again } = names.unwrap();
        let distinct: BTreeSet<String> = seen.into_iter().collect();
        let names: Vec<String> = distinct.into_iter().collect();
        (names.join(""), again, result, server.asked())
    }

    fn cut(mut page: (u16, String)) -> (u16, String) {
        page.1.truncate(page.1.len() - 20);
        page
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_breaks_off_is_read_again_with_its_token() {
        let answers = [
            page(&["a", "b"], "t"),
            cut(page(&["c", "d"], "")),
            (502, "bad gateway".to_owned()),
            page(&["c", "d"], ""),
        ];
        let (names, again, result, asked) = listed(answers).await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!((names.as_str(), again), ("abcd", 2));
        assert_eq!(asked[1], "/api/v1/pods?&limit=2&continue=t");
        assert!(asked[1..].iter().all(|uri| *uri == asked[1]), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_server_is_given_the_time_that_it_asks_for() {
        let busy = refusal(429, json!({"details": {"retryAfterSeconds": 9}}));
        let began = tokio::time::Instant::now();
        let (names, _, result, _) = listed([busy, page(&["a"], "")]).await;
        assert!(result.is_ok() && names == "a", "{result:?}");
        assert_eq!(began.elapsed().as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_known_to_be_silent_is_asked_once() {
        let answers = || [(503, "away".to_owned()), page(&["a"], "")];
        let (names, again, result, asked) = listed_by(answers(), false).await;
        assert_eq!((names.as_str(), again, asked.len()), ("", 0, 1));
        assert!(result.is_err_and(|error| error.is_passing()));
        // What has expired is another matter.
        let answers = [refusal(410, json!({})), page(&["a"], "")];
        let (names, _, result, _) = listed_by(answers, false).await;
        assert!(result.is_ok() && names == "a", "{result:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_stays_where_the_rest_cannot_be_had() {
        let answers = [page(&["a", "b"], "t"), refusal(403, json!({}))];
        let (names, again, result, asked) = listed(answers).await;
        assert_eq!((names.as_str(), again, asked.len()), ("ab", 0, 2));
        assert!(matches!(result, Err(ListError::Api(_))), "{result:?}");
        // A server that is out of answers fails in passing.
        let (names, again, result, _) = listed([page(&["a", "b"], "t")]).await;
        assert_eq!((names.as_str(), again), ("ab", 4));
        assert!(result.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_list_goes_on_or_begins_again() {
        let offer = refusal(410, json!({"metadata": {"continue": "n"}}));
        let answers = [page(&["a", "b"], "t"), offer, page(&["c"], "")];
        let (names, _, result, asked) = listed(answers).await;
        assert!(result.is_ok() && names == "abc", "{result:?}");
        assert!(asked[2].contains("continue=n"), "{asked:?}");

        let expired = || refusal(410, json!({}));
        let answers = [
            page(&["a", "b"], "t"),
            expired(),
            page(&["a", "b"], "u"),
            expired(),
            page(&["a", "b", "c"], ""),
        ];
        let (names, again, result, asked) = listed(answers).await;
        assert!(result.is_ok() && names == "abc", "{result:?}");
        assert_eq!(again, 2);
        assert!(!asked[2].contains("continue"), "{asked:?}");
        assert!(!asked[4].contains("limit"), "{asked:?}");
    }

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
