//! `/metrics` and `/ready` over HTTP.
//!
//! Whoever reaches the port can make it do little: a request has few bytes and little time, few are answered at once, and
//! each connection is closed after its answer.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{Metrics, Readiness};
use crate::limits::{MAX_HTTP_CONNECTIONS, MAX_HTTP_HEADERS, MAX_HTTP_REQUEST_BYTES};

/// From a connection to the end of its answer. Scrapers give up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers while it lives.
#[derive(Debug)]
pub struct MetricsServer {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Metrics cannot be served.
#[derive(Debug, Error)]
#[error("cannot serve metrics on {address} (MOAI_METRICS)")]
#[non_exhaustive]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub cause: io::Error,
}

/// Answers `GET /metrics` and `GET /ready` on an address; port 0 takes a free one.
///
/// # Errors
///
/// [`ServeError`] if the address cannot be had.
pub fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    readiness: Readiness,
) -> Result<MetricsServer, ServeError> {
    let fail = |cause| ServeError { address, cause };
    let listener = TcpListener::bind(address).map_err(fail)?;
    let address = listener.local_addr().map_err(fail)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = is_over.clone();
    let named = thread::Builder::new().name("moai-metrics".into());
    let thread = named
        .spawn(move || accept(&listener, &over, &Arc::new((metrics, readiness))))
        .map_err(fail)?;
    Ok(MetricsServer {
        address,
        is_over,
        thread: Some(thread),
    })
}

impl MetricsServer {
    /// Where it answers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread from its wait for connections.
        let mut here = self.address;
        if here.ip().is_unspecified() {
            here.set_ip(match here {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        let woken = TcpStream::connect_timeout(&here, PATIENCE).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            // A panic there was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, is_over: &AtomicBool, told: &Arc<(Arc<Metrics>, Readiness)>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else {
            // Out of descriptors, most likely: they come back, and spinning does not help.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if open.load(Ordering::Relaxed) >= MAX_HTTP_CONNECTIONS {
            // Closed without an answer, which a scraper tries again.
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (told, closed) = (told.clone(), open.clone());
        let answering = thread::Builder::new().spawn(move || {
            // Whoever has gone away needs no answer.
            let _ = answer(stream, &told.0, &told.1);
            closed.fetch_sub(1, Ordering::Relaxed);
        });
        if answering.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(mut stream: TcpStream, metrics: &Metrics, readiness: &Readiness) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let (status, kind, body) = match request(&mut stream)? {
        Request::Get(path) => match path.split('?').next() {
            Some("/metrics") => ("200 OK", OPEN_METRICS, metrics.text()),
            Some("/ready") => {
                let state = readiness.state();
                let status = match state.is_ready() {
                    true => "200 OK",
                    false => "503 Service Unavailable",
                };
                (status, PLAIN, format!("{state}\n"))
            }
            _ => (
                "404 Not Found",
                PLAIN,
                "there are /metrics and /ready\n".to_owned(),
            ),
        },
        Request::Other => ("405 Method Not Allowed", PLAIN, "GET only\n".to_owned()),
        Request::Bad => ("400 Bad Request", PLAIN, "no request\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

enum Request {
    Get(String),
    Other,
    Bad,
}

/// Reads a request's head.
fn request(stream: &mut TcpStream) -> io::Result<Request> {
    let start = Instant::now();
    let mut head = [0; MAX_HTTP_REQUEST_BYTES];
    let mut filled = 0;
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut head[filled..])? {
            // It ended, or has filled all that there is for it.
            0 => return Ok(Request::Bad),
            bytes => filled += bytes,
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HTTP_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head[..filled]) {
            Ok(httparse::Status::Partial) => {}
            Ok(httparse::Status::Complete(_)) => {
                return Ok(match (request.method, request.path) {
                    (Some("GET"), Some(path)) => Request::Get(path.to_owned()),
                    _ => Request::Other,
                });
            }
            Err(_) => return Ok(Request::Bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // What was not read of a request makes the other end's close a reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn start() -> (MetricsServer, Arc<Metrics>, Readiness) {
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::new(metrics.clone());
        let address = "127.0.0.1:0".parse().unwrap();
        let server = serve(address, metrics.clone(), readiness.clone()).unwrap();
        (server, metrics, readiness)
    }

    #[test]
    fn metrics_and_readiness_are_told() {
        let (server, _, readiness) = start();
        let get = |path: &str| {
            ask(
                server.address(),
                format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes(),
            )
        };
        let metrics = get("/metrics");
        assert!(
            metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("# EOF\n"),
            "{metrics}"
        );
        assert!(metrics.contains("\nmoai_ready 0\n"));
        let not_ready = get("/ready");
        assert!(not_ready.starts_with("HTTP/1.1 503 "), "{not_ready}");
        assert!(
            not_ready.ends_with("not ready: no compatible peer is linked\n"),
            "{not_ready}"
        );
        readiness.set(State::linked(1));
        assert!(get("/ready?x").starts_with("HTTP/1.1 200 "));
        assert!(get("/metrics").contains("\nmoai_ready 1\n"));
        readiness.set(State::linked(0));
        assert!(get("/ready").starts_with("HTTP/1.1 503 "));
        assert!(get("/").starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn what_is_no_request_is_refused_and_others_are_answered() {
        let (server, ..) = start();
        let at = server.address();
        assert!(ask(at, b"POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(at, b"\x16\x03\x01\x02\x00\x01\x00\x01").starts_with("HTTP/1.1 400 "));
        let long = format!(
            "GET /{} HTTP/1.1\r\n\r\n",
            "x".repeat(MAX_HTTP_REQUEST_BYTES)
        );
        assert!(!ask(at, long.as_bytes()).contains(" 200 "));
        // Those who connect and say nothing are many, and are gone after a while.
        let silent: Vec<_> = (0..4 * MAX_HTTP_CONNECTIONS)
            .map(|_| TcpStream::connect(at).unwrap())
            .collect();
        let start = Instant::now();
        while !ask(at, b"GET /metrics HTTP/1.0\r\n\r\n").contains(" 200 ") {
            assert!(
                start.elapsed() < PATIENCE * 10,
                "the silent keep everybody out"
            );
            thread::sleep(Duration::from_millis(50));
        }
        drop(silent);
        drop(server);
        assert!(TcpStream::connect(at).is_err());
    }
}
