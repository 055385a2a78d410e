//! The API: exactly four operations, and their documentation.
//!
//! A request passes, from the outside in: what bounds its connection ([`server`]), its log line and id ([`request_log`]), the
//! catch of panics, the guard ([`guard`]), the limits of its body, its operation. Every answer that is not the documentation is
//! JSON, errors included ([`error`]).

mod apply;
mod body;
pub mod error;
pub mod guard;
mod request_log;
pub mod server;
mod users;

use std::any::Any;

use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use axum::{Router, http};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_http::timeout::RequestBodyDeadlineLayer;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{self, ContentBuilder, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

use crate::apply::Applier;
use crate::storage::Storage;
use error::ApiError;
use guard::Guard;

/// The largest body, in bytes: a name and an address are far smaller.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// What the operations work on.
#[derive(Debug, Clone)]
pub struct Portal {
    /// Users.
    pub storage: Storage,
    /// Applies.
    pub applier: Applier,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "PBX Control Portal",
        description = "Users become SIP extensions of an Asterisk server. Create users, then apply: Asterisk serves them once an apply answers 200.",
        contact(),
    ),
    tags(
        (name = "Users", description = "Who has an extension"),
        (name = "Apply", description = "What Asterisk serves"),
    ),
    security((), ("token" = [])),
)]
struct Document;

/// What every operation has: the token, and the answers that do not depend on it.
struct EveryOperation;

impl Modify for EveryOperation {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The value of PORTAL_API_TOKEN, if it is set."));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
        let shared = [
            ("401", "`Unauthorized`: the token is wrong or missing"),
            (
                "403",
                "`Forbidden`: without a token, no web page of another origin may use this API, and on a loopback listener a request is addressed to 127.0.0.1 or localhost",
            ),
            ("500", "`Internal server error`: what should never be"),
        ];
        let operations = document
            .paths
            .paths
            .values_mut()
            .flat_map(|path| [&mut path.get, &mut path.post, &mut path.delete])
            .flatten();
        for operation in operations {
            for (status, description) in shared {
                let body = ContentBuilder::new().schema(Some(openapi::Ref::from_schema_name("ErrorBody"))).build();
                let response =
                    ResponseBuilder::new().description(description).content("application/json", body).build();
                operation.responses.responses.entry(status.to_owned()).or_insert(RefOr::T(response));
            }
        }
    }
}

fn operations() -> (Router<Portal>, openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(users::create, users::list))
        .routes(routes!(users::delete))
        .routes(routes!(apply::apply))
        .split_for_parts();
    EveryOperation.modify(&mut document);
    (router, document)
}

/// The API's OpenAPI document, as JSON with a newline at its end.
///
/// # Panics
/// Never: the document is made of what can be written as JSON.
#[must_use]
pub fn openapi_document() -> String {
    operations().1.to_pretty_json().expect("a document of plain values") + "\n"
}

/// Everything that is served.
pub fn router(portal: Portal, guard: Guard) -> Router {
    let (operations, document) = operations();
    let always = |name: HeaderName, value| SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value));
    operations
        .with_state(portal)
        .merge(documentation(document))
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(RequestBodyDeadlineLayer::new(server::BODY_PATIENCE))
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .layer(CatchPanicLayer::custom(panicked))
        // Answers hold secrets, and are what they say they are.
        .layer(always(header::CACHE_CONTROL, "no-store"))
        .layer(always(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .layer(middleware::from_fn(request_log::log))
}

/// Swagger UI, its files in the binary; a file that it does not have is a 404 as everywhere.
fn documentation(document: openapi::OpenApi) -> Router {
    let page: Router = SwaggerUi::new("/docs").url("/openapi.json", document).into();
    page.layer(middleware::map_response(async |response: Response| match response.status() {
        http::StatusCode::NOT_FOUND => ApiError::NotFound.into_response(),
        _ => response,
    }))
}

fn panicked(_: Box<dyn Any + Send + 'static>) -> http::Response<axum::body::Body> {
    // The panic's own message went to the log where it happened.
    let response: Response = ApiError::Internal.into_response();
    response
}
