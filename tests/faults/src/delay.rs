//! A line that delays: everything arrives later, and as much of it at a time as before.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

const BLOCK: usize = 64 << 10;
/// Blocks under way in one direction: more than 16 MiB, so that the line never holds back what the server could take.
const UNDER_WAY: usize = 256;

/// Forwards connections to a server; ends with this value.
#[derive(Debug)]
pub struct DelayLine {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl DelayLine {
    /// Listens on loopback. Each direction takes half of `round_trip` longer.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: SocketAddr, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(connection(client, server, round_trip / 2));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, accepting })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DelayLine {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn connection(client: TcpStream, server: SocketAddr, delay: Duration) -> io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::try_join!(
        forward(from_client, to_server, delay),
        forward(from_server, to_client, delay)
    )?;
    Ok(())
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    delay: Duration,
) -> io::Result<()> {
    let (sender, mut line) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let read = async move {
        loop {
            let mut block = Vec::with_capacity(BLOCK);
            if from.read_buf(&mut block).await? == 0 {
                return Ok::<_, io::Error>(());
            }
            if sender.send((Instant::now() + delay, block)).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, block)) = line.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&block).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_takes_the_round_trip_and_a_stream_is_not_held_back() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        });
        let line = DelayLine::start(server, Duration::from_millis(100))
            .await
            .unwrap();
        let stream = TcpStream::connect(line.address()).await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let begun = Instant::now();
        let sent = vec![7; 4 << 20];
        let writing = tokio::spawn({
            let sent = sent.clone();
            async move {
                to.write_all(&sent).await.unwrap();
                to.shutdown().await.unwrap();
            }
        });
        let mut received = Vec::new();
        from.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(100));
        assert_eq!(received, sent);
    }
}
