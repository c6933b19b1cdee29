//! The proxy: a listener on loopback, the count of requests, and the plan.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::forward::{self, Body};
use crate::{Fault, Plan, When};

/// Ends with its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    server: SocketAddr,
    plan: Option<Plan>,
    victim: watch::Sender<Option<Pid>>,
    /// Method and path of every request, in the order of arrival.
    requests: Mutex<Vec<String>>,
    struck: Mutex<Option<String>>,
    /// Requests that the server may still work on.
    pending: watch::Sender<usize>,
    holds: Mutex<Vec<Arc<Held>>>,
    lines: Mutex<Vec<Arc<Line>>>,
}

/// A line that carries one body at a time.
#[derive(Debug)]
struct Line {
    words: Vec<String>,
    bytes_per_second: u32,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Held {
    words: Vec<String>,
    when: When,
    /// Only the first that comes.
    one: bool,
    /// How many requests have come to it.
    arrived: watch::Sender<usize>,
    released: watch::Sender<bool>,
}

/// Requests wait here until it is dropped.
#[derive(Debug)]
pub struct Hold {
    held: Arc<Held>,
    shared: Arc<Shared>,
}

impl Hold {
    /// Waits until a request has come.
    pub async fn arrived(&self) {
        let mut arrived = self.held.arrived.subscribe();
        // The sender lives as long as `self`.
        let _ = arrived.wait_for(|count| *count > 0).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared
            .holds
            .lock()
            .retain(|held| !Arc::ptr_eq(held, &self.held));
        self.held.released.send_replace(true);
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 in front of `server`. Without a plan it only counts.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr, plan: Option<Plan>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Self::serve(listener, server, plan)
    }

    /// Listens on a socket that was made elsewhere: in another network namespace.
    ///
    /// # Errors
    /// When the socket is not one that listens.
    pub fn on(listener: std::net::TcpListener, server: SocketAddr) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Self::serve(TcpListener::from_std(listener)?, server, None)
    }

    fn serve(listener: TcpListener, server: SocketAddr, plan: Option<Plan>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            plan,
            victim: watch::Sender::new(None),
            requests: Mutex::default(),
            struck: Mutex::default(),
            pending: watch::Sender::new(0),
            holds: Mutex::default(),
            lines: Mutex::default(),
        });
        let listener = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            listener,
        })
    }

    /// The URL for clients, without a trailing slash.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds every request whose method and path have all these words in them, before the server sees it or before the client sees
    /// the answer.
    pub fn hold(&self, words: &[&str], when: When) -> Hold {
        self.new_hold(words, when, false)
    }

    /// [`hold`](Self::hold) for the next such request alone.
    pub fn hold_one(&self, words: &[&str], when: When) -> Hold {
        self.new_hold(words, when, true)
    }

    fn new_hold(&self, words: &[&str], when: When, one: bool) -> Hold {
        let held = Arc::new(Held {
            words: words.iter().map(ToString::to_string).collect(),
            when,
            one,
            arrived: watch::Sender::new(0),
            released: watch::Sender::new(false),
        });
        self.shared.holds.lock().push(Arc::clone(&held));
        Hold {
            held,
            shared: Arc::clone(&self.shared),
        }
    }

    /// From now on the bodies of requests whose method and path have all these words in them, and of the answers, come one after the
    /// other at this speed.
    pub fn slow(&self, words: &[&str], bytes_per_second: u32) {
        self.shared.lines.lock().push(Arc::new(Line {
            words: words.iter().map(ToString::to_string).collect(),
            bytes_per_second,
            turn: tokio::sync::Mutex::default(),
        }));
    }

    /// Names the process that [`Fault::Kill`] kills. Until then a request that is to be struck waits.
    pub fn aim(&self, pid: u32) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        self.shared.victim.send_replace(pid);
    }

    /// Method and path of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().clone()
    }

    /// Method and path of the first request that was struck; `None` if none was.
    pub fn struck(&self) -> Option<String> {
        self.shared.struck.lock().clone()
    }

    /// Waits until nothing that was sent to the server is without an answer, so that no request of a dead client takes
    /// effect later.
    pub async fn settled(&self) {
        let mut pending = self.shared.pending.subscribe();
        // The sender lives as long as `self`.
        let _ = pending.wait_for(|count| *count == 0).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| Arc::clone(&shared).handle(request));
    // A connection that a fault, or the client's death, ends is no error.
    let _ = hyper::server::conn::http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn has_all(line: &str, words: &[String]) -> bool {
    words.iter().all(|word| line.contains(word))
}

/// Ends the connection without a word.
fn hang_up<T>() -> io::Result<T> {
    Err(io::Error::other("dropped by the fault proxy"))
}

impl Shared {
    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let line = format!("{} {}", request.method(), request.uri());
        let number = {
            let mut requests = self.requests.lock();
            requests.push(line.clone());
            requests.len() as u64
        };
        self.held(&line, When::Before).await;
        let plan = self.plan.filter(|plan| plan.strikes(number));
        if plan.is_some() {
            self.struck.lock().get_or_insert(line.clone());
        }
        let before = plan.filter(|plan| plan.when == When::Before);
        let after = plan.filter(|plan| plan.when == When::After);

        match before.map(|plan| plan.fault) {
            Some(Fault::Kill) => return self.kill().await,
            Some(Fault::Drop) => return hang_up(),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Truncate | Fault::Unavailable) | None => {}
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        self.carry(&line, body.len()).await;
        match before.map(|plan| plan.fault) {
            Some(Fault::Unavailable) => return Ok(forward::unavailable()),
            Some(Fault::Truncate) => {
                let _ = self
                    .pass(Request::from_parts(head, forward::half(&body)))
                    .await;
                return hang_up();
            }
            _ => {}
        }
        let answer = self
            .pass(Request::from_parts(head, forward::whole(body)))
            .await?;
        self.held(&line, When::After).await;
        let (head, body) = answer.into_parts();
        self.carry(&line, body.len()).await;
        match after.map(|plan| plan.fault) {
            Some(Fault::Kill) => self.kill().await,
            Some(Fault::Drop) => hang_up(),
            Some(Fault::Truncate) if body.is_empty() => hang_up(),
            Some(Fault::Truncate) => Ok(Response::from_parts(head, forward::half(&body))),
            Some(Fault::Unavailable) => Ok(forward::unavailable()),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(Response::from_parts(head, forward::whole(body)))
            }
            None => Ok(Response::from_parts(head, forward::whole(body))),
        }
    }

    /// Takes the time that a body of this size takes.
    async fn carry(&self, line: &str, size: usize) {
        let slow = |slow: &&Arc<Line>| has_all(line, &slow.words);
        let slow = self.lines.lock().iter().find(slow).cloned();
        if let Some(slow) = slow {
            let _turn = slow.turn.lock().await;
            let seconds = size as f64 / f64::from(slow.bytes_per_second.max(1));
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
    }

    async fn held(&self, line: &str, when: When) {
        let matching = |held: &&Arc<Held>| {
            held.when == when
                && has_all(line, &held.words)
                && !(held.one && *held.arrived.borrow() > 0)
        };
        let held = {
            let holds = self.holds.lock();
            let held = holds.iter().find(matching).cloned();
            held.inspect(|held| held.arrived.send_modify(|count| *count += 1))
        };
        if let Some(held) = held {
            let mut released = held.released.subscribe();
            // The sender lives in `held`.
            let _ = released.wait_for(|released| *released).await;
        }
    }

    /// Asks the server, in a task of its own: what reached the server takes effect whether the client lives or not.
    async fn pass(self: &Arc<Self>, request: Request<Body>) -> io::Result<Response<bytes::Bytes>> {
        self.pending.send_modify(|count| *count += 1);
        let shared = Arc::clone(self);
        let sent = tokio::spawn(async move {
            let answer = forward::send(shared.server, request).await;
            shared.pending.send_modify(|count| *count -= 1);
            answer
        });
        sent.await.map_err(io::Error::other)?
    }

    async fn kill(&self) -> io::Result<Response<Body>> {
        let mut victim = self.victim.subscribe();
        if let Ok(pid) = victim.wait_for(Option::is_some).await
            && let Some(pid) = *pid
        {
            kill_process(pid, Signal::KILL)?;
        }
        hang_up()
    }
}
