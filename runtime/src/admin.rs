//! The admin endpoint: `/livez`, `/readyz`, `/metrics`, `/debug/health`.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, Metrics};

#[derive(Clone)]
struct Shared {
    health: Health,
    metrics: Metrics,
}

/// Serves until `shutdown`. `extra` are routes of the process's own.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    extra: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let app = Router::new()
        // Alive is whoever can answer: this runs on the same executor as the work.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(render))
        .route("/debug/health", get(checks))
        .with_state(Shared { health, metrics })
        .merge(extra);
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

/// Binds the address, for callers that want to know the port before serving.
///
/// # Errors
/// When the address is taken or not ours.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.health.ready() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(failing) => {
            let text = failing
                .iter()
                .map(|(name, why)| format!("{name}: {why}\n"))
                .collect();
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn checks(State(shared): State<Shared>) -> String {
    let all = shared.health.all();
    all.iter()
        .map(|(n, r)| format!("{n}: {}\n", r.as_deref().unwrap_or("ok")))
        .collect()
}

async fn render(State(shared): State<Shared>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        shared.metrics.render(),
    )
}
