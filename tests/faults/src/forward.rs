//! One request on its way to the server and its answer on the way back.

use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// All of a body.
pub(crate) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// The first half of a body, and the end of its connection.
pub(crate) fn half(bytes: &Bytes) -> Body {
    let half = Frame::data(bytes.slice(..bytes.len() / 2));
    let end = io::Error::other("cut by the fault proxy");
    StreamBody::new(stream::iter([Ok(half), Err(end)])).boxed()
}

/// What a server says that has too much to do.
pub(crate) fn unavailable() -> Response<Body> {
    let words = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code>\
                 <Message>Please reduce your request rate.</Message></Error>";
    let mut answer = Response::new(whole(Bytes::from_static(words.as_bytes())));
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer
}

/// Sends a request on a connection of its own and reads the whole answer.
pub(crate) async fn send(
    server: SocketAddr,
    request: Request<Body>,
) -> io::Result<Response<Bytes>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let answer = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    let answer = answer.await;
    driver.abort();
    answer
}
