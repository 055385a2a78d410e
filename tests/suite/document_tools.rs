//! The API's document as a tool of others reads it: a generator of clients. `make lint` runs linters on it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::fixtures::{account, host, id};
use support::lab::{BROWSER, Folder, dir, make_dir, write_file};
use support::process::{command_as, run_within};
use support::secs;
use support::sipp::{Called, Phones, call};

const DOCUMENT: &str = include_str!("../../openapi.json");

/// Runs a command, which must succeed, and gives what it printed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = run_within(secs(120), command);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// A folder of the user who runs the tools, with the document in it.
fn folder_with_document() -> (Folder, PathBuf) {
    let folder = Folder::new("document");
    make_dir(folder.path(), BROWSER.0, BROWSER.0, 0o755);
    let document = folder.path().join("openapi.json");
    write_file(&document, BROWSER, 0o644, DOCUMENT);
    (folder, document)
}

/// A program of the lab, run in this folder.
fn tool(folder: &Path, program: &str) -> Command {
    let program = dir().join(program);
    let mut command = command_as(BROWSER, &[], &program);
    let beside = program.parent().expect("a program lies in a folder").display();
    command.env("HOME", folder).env("PATH", format!("{beside}:/usr/bin:/bin")).current_dir(folder);
    command
}

#[test]
fn a_generated_client_does_the_main_job() {
    let (folder, document) = folder_with_document();
    let mut generator = tool(folder.path(), "schemathesis/bin/openapi-python-client");
    generator.args(["generate", "--meta=none", "--fail-on-warning", "--output-path=client", "--path"]).arg(document);
    run(&mut generator);
    let program = folder.path().join("program.py");
    write_file(&program, BROWSER, 0o644, include_str!("generated_client.py"));
    let (asterisk, portal) = host();
    let url = format!("http://{}", portal.address());
    let ask = |arguments: &[&str]| -> Value {
        let mut python = tool(folder.path(), "schemathesis/bin/python");
        let answer = run(python.arg(&program).arg(&url).args(arguments));
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    };
    let [alice, bob] = ["alice", "bob"].map(|name| ask(&["create", name, &format!("{name}@example.com")]));
    assert_eq!(ask(&["list"])["users"], serde_json::json!([alice, bob]));
    assert_eq!(ask(&["apply", "admin@example.com"])["users_applied"], 2);

    let [alices, bobs] = [&alice, &bob].map(account);
    let caller = (alices.0.as_str(), alices.1.as_str());
    let number = bobs.0;
    let phone = Phones::register(&asterisk, &[(&number, &bobs.1)], Called::Answer);
    assert_eq!(call(&asterisk, caller, &number), 200);
    assert_eq!(phone.requests("INVITE", &number), 1);

    assert_eq!(ask(&["delete", id(&bob)])["freed_extension"], 1001);
    assert_eq!(ask(&["apply", "admin@example.com"])["registrations_evicted"][0]["extension"], 1001);
    assert_eq!(call(&asterisk, caller, &number), 404);
}
