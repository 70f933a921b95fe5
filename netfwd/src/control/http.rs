//! `GET /metrics` and `GET /healthz`.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{BufMut, BytesMut};
use prometheus::{Encoder, Registry, TEXT_FORMAT, TextEncoder};

use super::health::Health;
use super::links::Netlink;
use super::metrics::{Metrics, MetricsCollector};

#[derive(Clone)]
struct Endpoint {
    registry: Registry,
    metrics: Arc<Metrics>,
    netlink: Netlink,
    health: Arc<Health>,
}

/// Serves until dropped.
pub(super) async fn serve(listener: std::net::TcpListener, metrics: Metrics, health: Arc<Health>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (registry, metrics) = (Registry::new(), Arc::new(metrics));
    registry.register(Box::new(MetricsCollector(metrics.clone()))).map_err(io::Error::other)?;
    let endpoint = Endpoint { registry, metrics, netlink: Netlink::open()?, health };
    let routes = Router::new().route("/metrics", get(scrape)).route("/healthz", get(healthz)).with_state(endpoint);
    axum::serve(listener, routes).await
}

async fn scrape(State(endpoint): State<Endpoint>) -> Response {
    // Without netlink the devices keep their last state: the other figures are still worth having.
    match endpoint.netlink.links().await {
        Ok(links) => endpoint.metrics.refresh_devices(&links),
        Err(error) => tracing::warn!("interface statistics: {error}"),
    }
    let mut text = BytesMut::new().writer();
    match TextEncoder::new().encode(&endpoint.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text.into_inner().freeze()).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn healthz(State(endpoint): State<Endpoint>) -> Response {
    match endpoint.health.check(Instant::now()) {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}
