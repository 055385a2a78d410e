//! The API's contract, held against the real service by schemathesis: from the committed document it makes requests that
//! keep it and requests that break it, alone and in chains, and checks that each answer is one that the document promises.

use serde_json::{Value, json};

use crate::fixtures::{answers, host};
use support::lab::{BROWSER, Folder, dir, make_dir, write_file};
use support::portal::Settings;
use support::process::{command_as, run_within};
use support::{Asterisk, Portal, secs};

#[test]
fn the_contract_holds_without_a_token() {
    let (_asterisk, portal) = host();
    keeps(&portal, &document(), 150, &[]);
}

#[test]
fn the_contract_holds_with_a_token_and_no_operation_works_without_it() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("PORTAL_API_TOKEN", "s3cret-token"));
    // The document leaves it open whether there is a token. Here there is, and schemathesis only tries to go without one
    // if asked to.
    let mut document = document();
    assert_eq!(document["security"], json!([{}, {"token": []}]));
    document["security"] = json!([{"token": []}]);
    keeps(&portal, &document, 40, &["--header", "Authorization: Bearer s3cret-token"]);
}

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi.json")).expect("JSON")
}

/// Every check there is, on a sequence of requests that is the same each time as far as the answers are; and every operation
/// was seen to succeed: a delete can only in a chain that begins with a create.
fn keeps(portal: &Portal, document: &Value, examples: u8, arguments: &[&str]) {
    let folder = Folder::new("schemathesis");
    make_dir(folder.path(), BROWSER.0, BROWSER.0, 0o755);
    let file = folder.path().join("openapi.json");
    write_file(&file, BROWSER, 0o644, &document.to_string());
    // Its warnings tell of what it could not test.
    write_file(&folder.path().join("schemathesis.toml"), BROWSER, 0o644, "[warnings]\nfail-on = true\n");
    let mut command = command_as(BROWSER, &[], dir().join("schemathesis/bin/schemathesis"));
    command.env("HOME", folder.path()).current_dir(folder.path());
    command.arg("run").arg(&file).args([&format!("--url=http://{}", portal.address()), "--no-color"]);
    command.args(["--checks=all", "--phases=examples,coverage,fuzzing,stateful", "--mode=all"]);
    command
        .args(["--generation-deterministic", "--continue-on-failure"])
        .arg(format!("--max-examples={examples}"))
        .args(arguments);
    let output = run_within(secs(300), &mut command);
    let (told, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{complained}");

    let answers = answers(&portal.log());
    for (method, path, status) in
        [("GET", "/users", 200), ("POST", "/users", 201), ("DELETE", "/users/", 200), ("POST", "/apply", 200)]
    {
        let seen = answers.iter().any(|(m, p, s)| m == method && p.starts_with(path) && *s == status);
        assert!(seen, "no {method} {path} was answered {status}:\n{told}");
    }
}
