//! Who may use the API. With a token, every client that sends it. Without one, every client that reaches the listener, but no
//! web page in an administrator's browser. The browser names a page of another origin in `Origin`. It names a page whose host
//! name now resolves to this host (DNS rebinding) in `Host`; nobody else can make a browser send this host's own name or an address.
//!
//! On loopback, a request that came through a proxy is refused, too: such a service would be open to the world by mistake. This is
//! a heuristic, because not every proxy says that it is one.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, Phrase};
use crate::settings::ApiToken;

pub(super) const OTHER_ORIGIN: ApiError =
    ApiError::new(Phrase::Forbidden, "Without PORTAL_API_TOKEN, a web page of another origin may not use this API.");
pub(super) const OTHER_HOST: ApiError = ApiError::new(
    Phrase::Forbidden,
    "Without PORTAL_API_TOKEN, a request must be addressed to an IP address, localhost, this host's name or PORTAL_HOST.",
);
pub(super) const THROUGH_PROXY: ApiError = ApiError::new(
    Phrase::Forbidden,
    "This request came through a proxy, which may open the API to everybody; set PORTAL_API_TOKEN, or say PORTAL_ALLOW_UNAUTHENTICATED=true and set PORTAL_HOST to the name that clients use.",
);

/// How requests are authorized.
#[derive(Clone)]
pub enum Guard {
    Token(ApiToken),
    /// No request needs a token.
    Open {
        /// The names by which a request may call this host, beside its addresses and `localhost`.
        own_names: Arc<[String]>,
        /// Whether a proxy may be in front.
        proxied: bool,
    },
}

/// Lets a request through, or answers 401 or 403.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    match guard {
        Guard::Token(token) => {
            // With two headers, a proxy in front may have checked the other one.
            let sent = only(headers, header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
            if !sent.is_some_and(|sent| token.matches(sent)) {
                return Err(ApiError::UNAUTHORIZED);
            }
        }
        Guard::Open { own_names, proxied } => {
            if !proxied && headers.keys().any(is_of_a_proxy) {
                return Err(THROUGH_PROXY);
            }
            let host = host(&request);
            if !host.as_ref().is_some_and(|host| is_own(host.host(), &own_names)) {
                return Err(OTHER_HOST);
            }
            if !headers.get_all(header::ORIGIN).iter().all(|origin| is_at(origin, host.as_ref())) {
                return Err(OTHER_ORIGIN);
            }
        }
    }
    Ok(next.run(request).await)
}

/// Returns the token of an `Authorization` header: what follows the scheme `Bearer` and its blanks.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let sent = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"Bearer") && sent.len() < rest.len()).then_some(sent)
}

fn is_of_a_proxy(name: &HeaderName) -> bool {
    ["forwarded", "x-real-ip"].contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-")
}

/// Whether a host is this one, as far as its name tells: no page can have an IP address for its name.
fn is_own(host: &str, own_names: &[String]) -> bool {
    let is = |own: &str| host.eq_ignore_ascii_case(own);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.is_ok() || is("localhost") || own_names.iter().any(|own| is(own))
}

/// Returns the value of a header that the request has exactly once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Returns the host that the request is addressed to; `None` if it names two.
fn host(request: &Request) -> Option<Authority> {
    let header = || only(request.headers(), header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
    request.uri().authority().cloned().or_else(header)
}

/// Whether a page of `origin` comes from `host`.
fn is_at(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let own = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
    own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host.as_str()))
}
