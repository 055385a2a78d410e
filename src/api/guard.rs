//! Who may use the API. With a token, every client that sends it. Without one, every client that reaches the listener, but no
//! web page in an administrator's browser. The browser names a page of another origin in `Origin`. It names a page whose host
//! name now resolves to a loopback address (DNS rebinding) in `Host`. The documentation is open to everybody.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, Phrase};
use crate::settings::{ApiToken, is_this_machine};

/// 403 for a page of another origin, without a token.
pub const OTHER_ORIGIN: ApiError =
    ApiError::new(Phrase::Forbidden, "Without PORTAL_API_TOKEN, a web page of another origin may not use this API.");
/// 403 for another host name, on a loopback listener without a token.
pub const OTHER_HOST: ApiError = ApiError::new(
    Phrase::Forbidden,
    "Without PORTAL_API_TOKEN, a request must be addressed to 127.0.0.1 or localhost.",
);

/// How requests are authorized.
#[derive(Debug, Clone)]
pub enum Guard {
    /// Every request but the documentation needs it.
    Token(ApiToken),
    /// No token; `loopback` is whether only this machine can reach the listener.
    Open {
        /// If so, `Host` must name this machine.
        loopback: bool,
    },
}

/// Lets a request through, or answers 401 or 403.
///
/// # Errors
/// 401 or 403.
pub async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, ApiError> {
    if is_documentation(request.uri()) {
        return Ok(next.run(request).await);
    }
    match &guard {
        Guard::Token(token) => {
            // With two headers, a proxy in front may have checked the other one.
            let mut presented = request.headers().get_all(header::AUTHORIZATION).iter();
            let (Some(credentials), None) = (presented.next(), presented.next()) else {
                return Err(ApiError::UNAUTHORIZED);
            };
            let bearer = credentials.as_bytes().split_at_checked(7);
            let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
            if !bearer.is_some_and(|(_, presented)| token.matches(presented)) {
                return Err(ApiError::UNAUTHORIZED);
            }
        }
        Guard::Open { loopback } => {
            let host = host(&request);
            if *loopback && !host.as_ref().is_some_and(|host| names_this_machine(host)) {
                return Err(OTHER_HOST);
            }
            if !same_origin(request.headers(), host.as_deref()) {
                return Err(OTHER_ORIGIN);
            }
        }
    }
    Ok(next.run(request).await)
}

fn is_documentation(uri: &Uri) -> bool {
    matches!(uri.path(), "/docs" | "/openapi.json") || uri.path().starts_with("/docs/")
}

/// The `host` or `host:port` that the request is addressed to; `None` if it names two.
fn host(request: &Request) -> Option<String> {
    let mut headers = request.headers().get_all(header::HOST).iter();
    let header = headers.next().filter(|_| headers.next().is_none()).and_then(|host| host.to_str().ok());
    request.uri().authority().map(ToString::to_string).or_else(|| header.map(str::to_owned))
}

fn names_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    is_this_machine(name)
}

fn same_origin(headers: &HeaderMap, host: Option<&str>) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    origins.all(|origin| {
        let own =
            origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://").or(origin.strip_prefix("https://")));
        own.is_some_and(|own| host.is_some_and(|host| own.eq_ignore_ascii_case(host)))
    })
}
