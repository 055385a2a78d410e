//! The API's document, and its page.

use std::collections::BTreeSet;

use pbx_control_portal::{Email, Name};
use serde_json::{Value, json};

use crate::fixtures::without_asterisk;
use support::Portal;
use support::portal::{Settings, run};

const COMMITTED: &str = include_str!("../../openapi.json");

#[test]
fn the_committed_openapi_document_is_what_the_program_prints_and_serves() {
    let printed = run(&["openapi"], &Settings::default());
    let committed = COMMITTED;
    assert_eq!(
        String::from_utf8_lossy(&printed.stdout),
        committed,
        "write it anew: cargo run -- openapi > openapi.json"
    );
    let portal = Portal::start(&without_asterisk());
    let served = portal.request("GET", "/openapi.json", None);
    assert_eq!(served.json, serde_json::from_str::<Value>(committed).expect("JSON"));
}

#[test]
fn the_documentation_page_is_in_the_binary() {
    let portal = Portal::start(&without_asterisk());
    let page = portal.request("GET", "/docs/", None);
    assert_eq!(page.status, 200);
    assert!(page.text.contains("swagger-ui"), "{}", page.text);
    for file in ["swagger-ui.css", "swagger-ui-bundle.js", "swagger-ui-standalone-preset.js", "swagger-initializer.js"]
    {
        let asset = portal.request("GET", &format!("/docs/{file}"), None);
        assert!(asset.status == 200 && !asset.text.is_empty(), "{file}: {}", asset.status);
    }
    assert_eq!(portal.request("GET", "/docs", None).status, 200, "it leads to the page");
}

/// What each operation can answer: status and phrase, without one where it succeeds.
const ANSWERS: [(&str, &[(u16, &str)]); 5] = [
    (
        "every operation",
        &[(401, "Unauthorized"), (403, "Forbidden"), (500, "Internal server error"), (503, "Database unavailable")],
    ),
    ("GET /users", &[(200, "")]),
    (
        "POST /users",
        &[
            (201, ""),
            (400, "Validation failed"),
            (409, "Email already in use"),
            (409, "Extension pool exhausted"),
            (413, "Payload too large"),
            (415, "Unsupported media type"),
        ],
    ),
    ("DELETE /users/{id}", &[(200, ""), (400, "Validation failed"), (404, "User not found")]),
    (
        "POST /apply",
        &[
            (200, ""),
            (400, "Validation failed"),
            (409, "Apply in progress"),
            (413, "Payload too large"),
            (415, "Unsupported media type"),
            (500, "Apply operation failed"),
        ],
    ),
];

#[test]
fn the_openapi_document_explains_every_operation_with_valid_examples() {
    let document: Value = serde_json::from_str(COMMITTED).expect("JSON");
    let expected: BTreeSet<_> = ANSWERS[1..]
        .iter()
        .flat_map(|(operation, answers)| ANSWERS[0].1.iter().chain(*answers).map(|answer| (*operation, *answer)))
        .map(|(operation, (status, phrase))| (operation.to_owned(), status.to_string(), phrase.to_owned()))
        .collect();
    let mut shown = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let name = format!("{} {path}", method.to_uppercase());
            for text in ["summary", "description", "operationId"] {
                assert!(operation[text].as_str().is_some_and(|text| !text.is_empty()), "{text} of {name}");
            }
            for parameter in operation["parameters"].as_array().unwrap_or(&Vec::new()) {
                check(&document, &parameter["schema"], &parameter["example"], &name);
            }
            if method == "post" {
                assert_eq!(operation["requestBody"]["required"], true);
                let content = &operation["requestBody"]["content"]["application/json"];
                check(&document, &content["schema"], &content["example"], &name);
            }
            for (status, response) in operation["responses"].as_object().expect("responses") {
                let content = &response["content"]["application/json"];
                for example in examples(content) {
                    check(&document, &content["schema"], example, &format!("{name} {status}"));
                    shown.insert((name.clone(), status.clone(), example["error"].as_str().unwrap_or("").to_owned()));
                }
            }
        }
    }
    assert_eq!(shown, expected);

    assert_eq!(document["security"], json!([{}, {"token": []}]));
    let token = &document["components"]["securitySchemes"]["token"];
    assert_eq!((&token["type"], &token["scheme"]), (&json!("http"), &json!("bearer")));
}

/// An example must be there, and valid.
fn check(document: &Value, schema: &Value, example: &Value, of: &str) {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema");
    let errors: Vec<_> = validator.iter_errors(example).map(|error| error.to_string()).collect();
    assert!(!example.is_null() && errors.is_empty(), "the example of {of}, {example}: {errors:?}");
}

/// One, or several with a name each.
fn examples(content: &Value) -> Vec<&Value> {
    match content["examples"].as_object() {
        Some(examples) => examples.values().map(|example| &example["value"]).collect(),
        None => vec![&content["example"]],
    }
}

#[test]
fn the_openapi_document_shows_the_very_patterns_that_the_code_applies() {
    let document: Value = serde_json::from_str(COMMITTED).expect("JSON");
    let schemas = &document["components"]["schemas"];
    for (schema, field, pattern) in [
        ("NewUser", "name", Name::PATTERN),
        ("NewUser", "email", Email::PATTERN),
        ("NewApply", "triggered_by", Name::PATTERN),
    ] {
        assert_eq!(schemas[schema]["properties"][field]["pattern"], pattern, "{schema}.{field}");
    }
    assert_eq!(schemas["NewUser"]["properties"]["email"]["maxLength"], Email::MAX_LENGTH);
    let triggered_by = &schemas["NewApply"]["properties"]["triggered_by"];
    assert_eq!(triggered_by["examples"], json!(["admin@example.com"]), "an administrator, not a user");
    assert!(triggered_by["description"].as_str().is_some_and(|text| text.contains("audit log")), "{triggered_by}");
}

#[test]
fn the_settings_are_the_same_in_the_readme_the_env_example_and_the_help() {
    let names = |text: &str| -> BTreeSet<String> {
        text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
            .filter(|word| ["PORTAL_", "ASTERISK_", "LOG_", "DATABASE_URL"].iter().any(|start| word.starts_with(start)))
            .map(ToOwned::to_owned)
            .collect()
    };
    let readme = include_str!("../../README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| `")).collect::<Vec<_>>().join("\n");
    let example = include_str!("../../.env.example");
    let lines = example.lines().filter(|line| line.starts_with('#') && line.contains('=')).collect::<Vec<_>>();
    let example = lines.iter().filter_map(|line| line[1..].split_once('=')).map(|(name, _)| name);
    let example = names(&example.filter(|name| !name.contains(' ')).collect::<Vec<_>>().join(" "));
    let mut command = pbx_control_portal::help::definition();
    let serve = command.find_subcommand_mut("serve").expect("serve").render_long_help().to_string();
    let top = command.render_help().to_string();
    let environment = |help: &str| names(help.split_once("Environment:").expect("its section").1);
    let table = names(&rows);
    assert_eq!(table.len(), 12, "{table:?}");
    assert_eq!((&table, &table, &table), (&example, &environment(&top), &environment(&serve)));
}
