//! Who may use the API. With a token, every client that sends it. Without one, every client that reaches the listener, but no
//! web page in an administrator's browser. The browser names a page of another origin in `Origin`. It names a page whose host
//! name now resolves to a loopback address (DNS rebinding) in `Host`.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, Phrase};
use crate::settings::{ApiToken, is_this_machine};

pub(super) const OTHER_ORIGIN: ApiError =
    ApiError::new(Phrase::Forbidden, "Without PORTAL_API_TOKEN, a web page of another origin may not use this API.");
pub(super) const OTHER_HOST: ApiError = ApiError::new(
    Phrase::Forbidden,
    "Without PORTAL_API_TOKEN, a request must be addressed to 127.0.0.1 or localhost.",
);

/// How requests are authorized.
#[derive(Clone)]
pub enum Guard {
    /// Every request needs it.
    Token(ApiToken),
    /// No token. If only this machine can reach the listener (`loopback`), `Host` must name it.
    Open { loopback: bool },
}

/// Lets a request through, or answers 401 or 403.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    match guard {
        Guard::Token(token) => {
            // With two headers, a proxy in front may have checked the other one.
            let bearer = only(headers, header::AUTHORIZATION).and_then(|value| value.as_bytes().split_at_checked(7));
            if !bearer.is_some_and(|(scheme, sent)| scheme.eq_ignore_ascii_case(b"Bearer ") && token.matches(sent)) {
                return Err(ApiError::UNAUTHORIZED);
            }
        }
        Guard::Open { loopback } => {
            let host = host(&request);
            let name = host.as_ref().map(|host| host.host().trim_start_matches('[').trim_end_matches(']'));
            if loopback && !name.is_some_and(is_this_machine) {
                return Err(OTHER_HOST);
            }
            if !headers.get_all(header::ORIGIN).iter().all(|origin| is_at(origin, host.as_ref())) {
                return Err(OTHER_ORIGIN);
            }
        }
    }
    Ok(next.run(request).await)
}

/// The value of a header that stands there once.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// What the request is addressed to; `None` if it names two hosts.
fn host(request: &Request) -> Option<Authority> {
    let header = || only(request.headers(), header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
    request.uri().authority().cloned().or_else(header)
}

fn is_at(origin: &HeaderValue, host: Option<&Authority>) -> bool {
    let origin = origin.to_str().unwrap_or_default();
    let own = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
    own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host.as_str()))
}
