//! The OpenAPI document, and the page that shows it.

use std::collections::BTreeMap;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use utoipa::OpenApi;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::schema::{AllOfBuilder, AnyOfBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{self, Content, ObjectBuilder, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::UtoipaMethodRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::{Uuid, uuid};

use super::error::{ApiError, Phrase};
use super::guard;
use crate::apply::FailedApply;
use crate::domain::{Email, Name};
use crate::storage::LOOK_AND_TRY_AGAIN;

/// Identifiers of the examples.
pub const USER_ID: Uuid = uuid!("0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90");
const REQUEST_ID: Uuid = uuid!("5ffb5a6a-79de-421c-838c-dbe842bce6d4");
pub const AUDIT_LOG_ID: Uuid = uuid!("7c1f0d52-90a4-4a58-8d5e-2b6f3e9a1c47");

/// The page loads its own files only, and the `data:` images of its style sheet. No other page may embed it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "PBX Control Portal",
        description = "Users become SIP extensions of an Asterisk server. Create a user, apply, then register the phone with the extension's number and secret: Asterisk serves the user once the apply answers 200.\n\nInstallation, backups and what each error means: README.md and docs/operations.md, in /usr/share/doc/pbx-portal on the server.",
        contact(),
    ),
    servers((url = ".", description = "The server that this document comes from")),
    tags(
        (name = "Users", description = "Who has an extension"),
        (name = "Apply", description = "What Asterisk serves"),
    ),
    components(schemas(ApiError, FailedApply)),
    security((), ("token" = [])),
)]
struct Document;

/// The document without its operations.
pub fn document() -> openapi::OpenApi {
    let mut document = Document::openapi();
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let token = token.description(Some("The value of PORTAL_API_TOKEN, if it is set.")).build();
    document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(token));
    document
}

/// The schema of a [`Name`] in a request.
pub fn name(purpose: &str, example: &str) -> ObjectBuilder {
    let rule = "1 to 255 characters of any script, without control or line-breaking characters, characters that turn the text around, or invisible ones; white space around it is taken off.";
    text(format!("{purpose}: {rule}"), Name::PATTERN, example)
}

/// The schema of an [`Email`] in a request.
pub fn email() -> ObjectBuilder {
    let rule = "An e-mail address by the HTML standard's grammar: ASCII only. Unique, whatever its case.";
    text(rule.to_owned(), Email::PATTERN, "alice@example.com").max_length(Some(Email::MAX_LENGTH))
}

fn text(description: String, pattern: &str, example: &str) -> ObjectBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String).description(Some(description));
    text.pattern(Some(pattern)).examples([example])
}

/// Documents that an operation can fail with `errors`, with those of every operation, and with those of every body if it takes one.
/// The examples are the bodies that are sent.
pub fn with_failures<S>(operation: UtoipaMethodRouter<S>, errors: Vec<ApiError>) -> UtoipaMethodRouter<S> {
    let (schemas, mut paths, router) = operation;
    let methods = paths.paths.values_mut().flat_map(|path| [&mut path.get, &mut path.post, &mut path.delete]);
    let operation = methods.flatten().next().expect("one operation");
    let of_body = [ApiError::PAYLOAD_TOO_LARGE, ApiError::UNSUPPORTED_MEDIA_TYPE, ApiError::ENCODED];
    let of_body = of_body.into_iter().filter(|_| operation.request_body.is_some());
    let of_guard = [ApiError::UNAUTHORIZED, guard::OTHER_ORIGIN, guard::OTHER_HOST, guard::THROUGH_PROXY];
    let of_service = [ApiError::INTERNAL, ApiError::database_unavailable(None, LOOK_AND_TRY_AGAIN)];
    let mut statuses = BTreeMap::<StatusCode, Vec<ApiError>>::new();
    for error in errors.into_iter().chain(of_body).chain(of_guard).chain(of_service) {
        statuses.entry(error.error.status()).or_default().push(error);
    }
    let responses = statuses.into_iter().map(|(status, errors)| (status.as_str().to_owned(), response(errors).into()));
    operation.responses.responses.extend(responses);
    (schemas, paths, router)
}

fn response(errors: Vec<ApiError>) -> openapi::Response {
    let error_body = Ref::from_schema_name("ErrorBody");
    let schema = if errors.iter().any(|error| error.error == Phrase::ApplyOperationFailed) {
        // An internal error has the fields that every error has, and no others.
        let failed_apply = AllOfBuilder::new().item(error_body.clone()).item(Ref::from_schema_name("FailedApply"));
        AnyOfBuilder::new().item(failed_apply).item(error_body).into()
    } else {
        RefOr::<openapi::Schema>::from(error_body)
    };
    let mut phrases = Vec::new();
    let mut examples = Vec::new();
    for error in errors {
        let body = json!(ApiError { request_id: REQUEST_ID.to_string(), ..error });
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

/// Swagger UI, whose files are in the binary. A file that does not exist is the API's own 404. All addresses are relative, because a
/// proxy may serve the API below a path of its own.
pub fn page(document: openapi::OpenApi) -> Router {
    // The standard layout asks a service on the Internet to validate the document, and has an inline style, which the policy forbids.
    let config = Config::from("../openapi.json").use_base_layout().default_models_expand_depth(0);
    let page: Router = SwaggerUi::new("/docs").url("/openapi.json", document).config(config).into();
    let page = page.method_not_allowed_fallback(async || ApiError::METHOD_NOT_ALLOWED);
    page.layer(middleware::map_response(async |response: Response| match response.status() {
        StatusCode::NOT_FOUND => ApiError::NOT_FOUND.into_response(),
        // From /docs, the only redirect.
        StatusCode::SEE_OTHER => ([(header::LOCATION, "docs/")], response).into_response(),
        _ => ([(header::CONTENT_SECURITY_POLICY, POLICY)], response).into_response(),
    }))
}
