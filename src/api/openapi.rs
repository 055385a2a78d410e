//! The OpenAPI document, and the page that shows it.

use std::collections::BTreeMap;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::schema::AnyOfBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{self, Content, Ref, RefOr, ResponseBuilder};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::{Uuid, uuid};

use super::apply::FailedApply;
use super::error::{ApiError, ErrorBody, Phrase};
use super::guard;

/// Identifiers of the examples.
pub const USER_ID: Uuid = uuid!("0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90");
const REQUEST_ID: Uuid = uuid!("5ffb5a6a-79de-421c-838c-dbe842bce6d4");
pub const AUDIT_LOG_ID: Uuid = uuid!("7c1f0d52-90a4-4a58-8d5e-2b6f3e9a1c47");

/// The page loads its own files only, and the `data:` images of its style sheet. No other page may embed it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The document without its operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "PBX Control Portal",
        description = "Users become SIP extensions of an Asterisk server. Create a user, apply, then register the phone with the extension's number and secret: Asterisk serves the user once the apply answers 200.\n\nInstallation, backups and what each error means: README.md and docs/operations.md, in /usr/share/doc/pbx-portal on the server.",
        contact(),
    ),
    servers((url = "/", description = "The server that this document comes from")),
    tags(
        (name = "Users", description = "Who has an extension"),
        (name = "Apply", description = "What Asterisk serves"),
    ),
    components(schemas(ErrorBody, FailedApply)),
    modifiers(&Token),
    security((), ("token" = [])),
)]
pub struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut openapi::OpenApi) {
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The value of PORTAL_API_TOKEN, if it is set."));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(token.build()));
    }
}

/// The responses of an operation that can fail with `errors`, and with those that any operation can. The examples are the bodies
/// that are sent.
pub fn failures<const N: usize>(errors: [ApiError; N]) -> BTreeMap<String, RefOr<openapi::Response>> {
    let every_operation = [ApiError::UNAUTHORIZED, guard::OTHER_ORIGIN, guard::OTHER_HOST, ApiError::INTERNAL];
    let mut statuses = BTreeMap::<StatusCode, Vec<ApiError>>::new();
    for error in errors.into_iter().chain(every_operation) {
        statuses.entry(error.phrase.status()).or_default().push(error);
    }
    statuses.into_iter().map(|(status, errors)| (status.as_str().to_owned(), response(errors).into())).collect()
}

/// The response of one status.
fn response(errors: Vec<ApiError>) -> openapi::Response {
    let error_body = Ref::from_schema_name("ErrorBody");
    let schema = if errors.iter().any(|error| error.phrase == Phrase::ApplyOperationFailed) {
        // An internal error has the fields that every error has, so a failed apply matches both schemas.
        AnyOfBuilder::new().item(Ref::from_schema_name("FailedApply")).item(error_body).into()
    } else {
        RefOr::<openapi::Schema>::from(error_body)
    };
    let mut phrases = Vec::new();
    let mut examples = Vec::new();
    for error in errors {
        let body = serde_json::to_value(error.into_body(REQUEST_ID.to_string())).expect("a body of plain values");
        let phrase = body["error"].as_str().expect("a phrase").to_owned();
        let same = phrases.iter().filter(|other| **other == phrase).count();
        let name = if same == 0 { phrase.clone() } else { format!("{phrase} ({})", same + 1) };
        examples.push((name, ExampleBuilder::new().value(Some(body)).build()));
        phrases.push(phrase);
    }
    phrases.dedup();
    let content = Content::builder().schema(Some(schema)).examples_from_iter(examples).build();
    let description = format!("`{}`", phrases.join("` or `"));
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// Swagger UI, whose files are in the binary. A file that does not exist is the API's own 404.
pub fn page(document: openapi::OpenApi) -> Router {
    // The standard layout asks a service on the Internet to validate the document, and has an inline style, which the policy forbids.
    let config = Config::default().use_base_layout().default_models_expand_depth(0);
    let page: Router = SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into();
    page.layer(middleware::map_response(async |response: Response| {
        let mut response = match response.status() {
            StatusCode::NOT_FOUND => ApiError::NOT_FOUND.into_response(),
            _ => response,
        };
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        response
    }))
}
