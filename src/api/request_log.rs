//! Logs one line for each request, with its id: the client's `x-request-id`, or a new one. The answer's head repeats the id, and
//! so does the body of an error.

use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderName;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::task_local;
use tracing::{Instrument as _, info, info_span};
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that a client may choose.
const MAX_ID_BYTES: usize = 128;
/// The longest part of a path that is logged.
const MAX_PATH_CHARS: usize = 200;

task_local! {
    static CURRENT_ID: String;
}

/// The id of the request that this task answers; empty in other tasks.
pub fn current_id() -> String {
    CURRENT_ID.try_with(Clone::clone).unwrap_or_default()
}

/// Logs a request when it is answered. Lines that are logged meanwhile have its id, too.
pub async fn log(request: Request, next: Next) -> Response {
    let sent = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let sent = sent.filter(|id| !id.is_empty() && id.len() <= MAX_ID_BYTES);
    let id = sent.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
    let span = info_span!("request", id);
    let answer = async move {
        let path: String = request.uri().path().chars().take(MAX_PATH_CHARS).collect();
        let method = request.method().clone();
        let started = Instant::now();
        let response = next.run(request).await;
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0;
        let status = response.status().as_u16();
        info!(%method, path, status, milliseconds, "answered");
        response
    };
    let response = CURRENT_ID.scope(id.clone(), answer.instrument(span)).await;
    ([(REQUEST_ID, id)], response).into_response()
}
