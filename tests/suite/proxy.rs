//! Behind a TLS proxy, as docs/security.md says it is done: a real nginx with that very configuration.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixtures::answers;
use support::lab::{Folder, Ports};
use support::portal::Settings;
use support::process::{Process, run_within};
use support::{Asterisk, Portal, secs, wait_until};

/// An nginx with this server, and its files in a folder.
pub fn nginx(folder: &Folder, server: &str) -> Process {
    let at = |name: &str| folder.path().join(name).display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {};\n", at(kind)))
        .concat();
    let configuration = format!(
        "daemon off; pid {}; error_log stderr; events {{}}\nhttp {{ access_log off;\n{temporary}{server}}}\n",
        at("nginx.pid")
    );
    fs::write(at("nginx.conf"), configuration).expect("write nginx.conf");
    let mut nginx = Command::new("/usr/sbin/nginx");
    Process::start(nginx.args(["-e", "stderr", "-c", &at("nginx.conf")]), &folder.path().join("log"))
}

#[test]
fn a_proxy_as_the_documents_configure_it_passes_everything_on() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("PORTAL_API_TOKEN", "0123456789abcdef"));
    let (folder, port) = (Folder::new("nginx"), Ports::one());
    let at = |name: &str| folder.path().join(name).display().to_string();
    let mut certificate = Command::new("openssl");
    certificate.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=pbx.example.com"]);
    certificate.args(["-addext", "subjectAltName=DNS:pbx.example.com", "-keyout", &at("key"), "-out", &at("pem")]);
    assert!(run_within(secs(30), &mut certificate).status.success());

    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/security.md")).expect("it");
    let (_, server) = document.split_once("```nginx\n").expect("a configuration");
    let (server, _) = server.split_once("```").expect("its end");
    let mut server = server.to_owned();
    // What differs in the lab: ports and places.
    for (shown, here) in [
        ("listen 443 ssl", format!("listen {} ssl", port.address())),
        ("127.0.0.1:8000", portal.address().to_string()),
        ("/etc/ssl/certs/pbx.example.com.pem", at("pem")),
        ("/etc/ssl/private/pbx.example.com.key", at("key")),
    ] {
        assert!(server.contains(shown), "{shown} in {server}");
        server = server.replace(shown, &here);
    }
    let _nginx = nginx(&folder, &server);

    let curl = |arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--include", "--cacert", &at("pem")]);
        curl.args(["--connect-to", &format!("pbx.example.com:443:{}", port.address())]).args(arguments);
        let output = run_within(secs(60), &mut curl);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let token = "authorization: Bearer 0123456789abcdef";
    let json = "content-type: application/json";
    wait_until(secs(10), "nginx answers", || curl(&["https://pbx.example.com/users"]).contains("401"));
    let created = r#"{"name":"Alice","email":"alice@example.com"}"#;
    let origin = "origin: https://elsewhere.example";
    let answer = curl(&["-H", token, "-H", json, "-H", origin, "-d", created, "https://pbx.example.com/users"]);
    assert!(answer.starts_with("HTTP/1.1 201") && answer.contains("\"number\":1000"), "{answer}");
    let answer = curl(&["-H", token, "-H", json, "-d", r#"{"triggered_by":"x"}"#, "https://pbx.example.com/apply"]);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).expect("an id");
    assert!(id.trim().len() == 32 && portal.log().contains(id.trim()), "nginx's own id is in the log: {id}");
    assert!(
        answers(&portal.log())
            .iter()
            .any(|(method, path, status)| method == "POST" && path == "/apply" && *status == 200)
    );
}
