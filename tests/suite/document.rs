//! The API's document, and its page.

use serde_json::Value;

use crate::fixtures::host;
use crate::support::portal::{Settings, run};

#[test]
fn that_is_committed_is_what_the_program_prints_and_serves() {
    let printed = run(&["openapi"], &Settings::default());
    let committed = include_str!("../../openapi.json");
    assert_eq!(
        String::from_utf8_lossy(&printed.stdout),
        committed,
        "write it anew: cargo run -- openapi > openapi.json"
    );
    let (_asterisk, portal) = host();
    let served = portal.request("GET", "/openapi.json", None);
    assert_eq!(served.json, serde_json::from_str::<Value>(committed).expect("JSON"));
}

#[test]
fn page_is_in_the_binary() {
    let (_asterisk, portal) = host();
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
