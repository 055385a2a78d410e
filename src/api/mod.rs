//! The API: exactly four operations, and their documentation.
//!
//! A request passes, from the outside in: the limits of its connection ([`server`]), its log line and id ([`request_log`]), the
//! catch of panics, the guard ([`guard`]), the limits of its body, its operation. Every answer that is not the documentation is
//! JSON, errors included ([`error`]).

mod apply;
mod error;
mod extract;
pub mod guard;
mod openapi;
mod request_log;
pub mod server;
mod users;

use std::any::Any;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware;
use axum::response::IntoResponse as _;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::apply::Applier;
use crate::storage::Storage;
use error::ApiError;
use guard::Guard;

/// The largest body, in bytes: a name and an address are far smaller.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// The state that the operations share.
#[derive(Clone)]
pub struct Portal {
    pub storage: Storage,
    pub applier: Applier,
}

fn operations() -> (Router<Portal>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(openapi::document())
        .routes(openapi::with_failures(routes!(users::create), users::create_failures()))
        .routes(openapi::with_failures(routes!(users::list), users::list_failures()))
        .routes(openapi::with_failures(routes!(users::delete), users::delete_failures()))
        .routes(openapi::with_failures(routes!(apply::apply), apply::failures()))
        .split_for_parts()
}

/// The API's OpenAPI document, as JSON with a newline at its end.
pub fn openapi_document() -> String {
    operations().1.to_pretty_json().expect("a document of plain values") + "\n"
}

pub fn router(portal: Portal, guard: Guard) -> Router {
    let (operations, document) = operations();
    let always = |name: HeaderName, value| SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value));
    // The panic's own message went to the log where it happened.
    let panicked = |_: Box<dyn Any + Send>| ApiError::INTERNAL.into_response();
    operations
        .with_state(portal)
        .fallback(async || ApiError::NOT_FOUND)
        .method_not_allowed_fallback(async || ApiError::METHOD_NOT_ALLOWED)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(guard, guard::check))
        // Open to everybody, so it is outside the guard.
        .merge(openapi::page(document))
        .layer(CatchPanicLayer::custom(panicked))
        // Answers hold secrets: no cache may keep them, and no browser may guess another type.
        .layer(always(header::CACHE_CONTROL, "no-store"))
        .layer(always(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(middleware::from_fn(request_log::log))
}
