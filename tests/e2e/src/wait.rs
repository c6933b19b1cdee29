//! Waiting for the world to become what a test wants, with the last state in the message when it does not.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Watches one object until `good` says so.
///
/// # Errors
/// After `limit`, with the object's last state.
pub async fn wait_for<K>(
    api: &Api<K>,
    name: &str,
    limit: Duration,
    good: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let mut last: Option<K> = None;
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff());
    let mut failed = None;
    let watching = async {
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    if good(&object) {
                        return Ok(object);
                    }
                    last = Some(object);
                }
                Ok(watcher::Event::Delete(_)) => last = None,
                Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                // The watch begins anew.
                Err(error) => failed = Some(error),
            }
        }
        bail!("the watch ended");
    };
    match tokio::time::timeout(limit, watching).await {
        Ok(found) => found,
        Err(_) => bail!(
            "{name} is not as wanted after {limit:?}; last seen: {}; last error: {failed:?}",
            serde_json::to_string(&last)?
        ),
    }
}

/// Waits until an object is gone.
///
/// # Errors
/// After `limit`.
pub async fn wait_gone<K>(api: &Api<K>, name: &str, limit: Duration) -> Result<()>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let what = format!("{name} is gone");
    until(&what, limit, async || {
        Ok(api.get_opt(name).await?.is_none().then_some(()))
    })
    .await
}

/// Asks again and again, four times a second, for what cannot be watched. An error of `ask` counts as "not yet".
///
/// # Errors
/// After `limit`, with the last error.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    let mut last = None;
    while started.elapsed() < limit {
        match ask().await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => last = None,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let late = format!("not so after {limit:?}: {what}");
    match last {
        Some(error) => Err(error).context(late),
        None => bail!(late),
    }
}
