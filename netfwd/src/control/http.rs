//! `GET /metrics` and `GET /healthz`.
//!
//! Whoever reaches the port may connect and then say nothing, again and again. A scrape says what it wants at once and
//! is answered in milliseconds; so when there are too many connections the oldest one goes, and a scrape never waits.
//!
//! Invariants: there are no more than [`CONNECTIONS`]; each brings one request, whose head comes soon, and has an end.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{BufMut, BytesMut};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, Registry, TEXT_FORMAT, TextEncoder};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::health::Health;
use super::links::Netlink;
use super::metrics::{Metrics, MetricsCollector};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long all of it may take, the reader of the answer included.
const EXCHANGE: Duration = Duration::from_secs(30);
/// Bytes of a request's head.
const HEAD_LEN: usize = 16 << 10;
/// Between two tries to accept while there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

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
    let listener = TcpListener::from_std(listener)?;
    let (registry, metrics) = (Registry::new(), Arc::new(metrics));
    registry.register(Box::new(MetricsCollector(metrics.clone()))).map_err(io::Error::other)?;
    let endpoint = Endpoint { registry, metrics, netlink: Netlink::open()?, health };
    let routes = Router::new().route("/metrics", get(scrape)).route("/healthz", get(healthz)).with_state(endpoint);
    accept(&listener, &routes).await
}

async fn accept(listener: &TcpListener, routes: &Router) -> ! {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.add(exchange(stream, routes.clone())),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// One request, one answer.
async fn exchange(stream: TcpStream, routes: Router) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_LEN).keep_alive(false);
    let exchange = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // Whoever leaves or is too slow has nobody to tell it to.
    let _ = timeout(EXCHANGE, exchange).await;
}

/// Connections, of which the oldest makes room for the newest. They end with this.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    oldest_first: VecDeque<AbortHandle>,
}

impl Connections {
    fn add(&mut self, exchange: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.oldest_first.retain(|connection| !connection.is_finished());
        if self.oldest_first.len() == CONNECTIONS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            oldest.abort();
        }
        self.oldest_first.push_back(self.tasks.spawn(exchange));
    }
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
