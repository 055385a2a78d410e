//! HTTP/1 for untrusted clients: whatever they send or do not send, each uses little memory, for a bounded time.
//!
//! - **Reading** has a time limit for a head and one for a body, at whatever rate the bytes come.
//! - **Answering** has no time limit: an apply may need minutes. A client may close the sending half of its connection after the request,
//!   and still receives the answer.
//! - **Writing** has a time limit, too. hyper works on the next request only after the client has taken the answer. So a client that
//!   pipelines requests makes the service hold one answer at a time: at worst a list of 1000 users, 1.5 MB.
//! - **Room** for [`MAX_CONNECTIONS`], fewer if the process may open fewer files. Further connections wait in the kernel's queue.
//!   When all places are taken, each connection is closed after its present answer, so all become free within the bounds.
//!
//! A body that is late is a 400, `Validation failed`. Everything else that is late, is not HTTP, or has an oversized head ends the
//! connection, without an answer or with hyper's own 400 or 431. Those two have no body; they are the only answers that are not
//! JSON. Of a request that has chunks and a length, hyper takes the chunks and closes the connection, so nothing is smuggled.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// The time limit from a connection to the end of its first request's head, and from the end of a head to the end of its body.
pub const SENT_WITHIN: Duration = Duration::from_secs(5);

/// The time limit from an answer to the end of the next request's head. Enough for a client at 1 Mbit/s to read a list of 1000 users.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(20);

/// The most connections at a time.
pub const MAX_CONNECTIONS: u64 = 512;

/// File handles reserved for the database, Asterisk and the generated files.
const OWN_HANDLES: u64 = 64;

/// The largest head, and the most that is read ahead. hyper takes 100 fields.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Serves until `stopping` is cancelled, then until each connection has its present answer.
pub async fn serve(mut listener: TcpListener, router: Router, stopping: CancellationToken) {
    let handles = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = handles.saturating_sub(OWN_HANDLES).clamp(8, MAX_CONNECTIONS);
    let places = Arc::new(Semaphore::new(usize::try_from(room).expect("at most 512")));
    let connections = GracefulShutdown::new();
    let accept = async {
        // Nobody closes the semaphore, so this does not end.
        while let Ok(place) = places.clone().acquire_owned().await {
            // After an error, axum's own accept logs it and tries again a second later.
            let (stream, _) = Listener::accept(&mut listener).await;
            tokio::spawn(converse(stream, router.clone(), connections.watcher(), place));
        }
    };
    stopping.run_until_cancelled(accept).await;
    drop(listener);
    connections.shutdown().await;
}

/// One connection, from its first request to its last answer.
async fn converse(stream: TcpStream, router: Router, watcher: Watcher, place: OwnedSemaphorePermit) {
    // When the client is too slow; `None` while the service works on an answer.
    let deadline = watch::Sender::new(Some(Instant::now() + SENT_WITHIN));
    let router = TowerToHyperService::new(router);
    let service = service_fn(async |request: Request<Incoming>| {
        deadline.send_replace(None);
        let mut answer = router.call(request).await?;
        if place.semaphore().available_permits() == 0 {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        deadline.send_replace(Some(Instant::now() + TAKEN_WITHIN));
        Ok::<_, Infallible>(answer)
    });
    let mut http = http1::Builder::new();
    // `too_slow` bounds heads and writes, so hyper's own time-out is off; `extract::Fields` bounds bodies.
    http.header_read_timeout(None).half_close(true).max_buf_size(MAX_HEAD_BYTES);
    let connection = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            debug!(%error, "a connection broke off");
        },
        () = too_slow(&deadline) => debug!("a client was too slow"),
    }
}

/// Returns when the client has taken too long. A deadline that is set later is at least [`TAKEN_WITHIN`] away, so no request needs to
/// wake it.
async fn too_slow(deadline: &watch::Sender<Option<Instant>>) {
    loop {
        let now = Instant::now();
        let until = *deadline.borrow();
        if until.is_some_and(|until| until <= now) {
            return;
        }
        sleep_until(until.unwrap_or(now + TAKEN_WITHIN)).await;
    }
}
