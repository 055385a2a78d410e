//! What a real browser does: it shows the documentation, and it is no way in for other pages.

use std::collections::BTreeSet;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::fixtures::{answers, host, id, sqlite, without_asterisk};
use crate::proxy::nginx;
use support::lab::{BROWSER, Folder, Ports, write_file};
use support::portal::Settings;
use support::process::{Process, command_as};
use support::{Chromium, Portal, secs, wait_until};

#[test]
fn the_documentation_page_creates_a_user() {
    let portal = Portal::start(&without_asterisk().with("PORTAL_API_TOKEN", "s3cret-token"));
    // A name, because Swagger UI leaves its validator on the Internet alone when it shows a loopback address.
    creates_a_user(&portal, &format!("http://portal.example:{}/", portal.address().port()));
}

#[test]
fn the_documentation_page_below_a_path_of_a_proxy_creates_a_user() {
    let portal = Portal::start(&without_asterisk().with("PORTAL_API_TOKEN", "s3cret-token"));
    let (folder, port) = (Folder::new("nginx"), Ports::one());
    let location = format!("location /a/pbx/ {{ proxy_pass http://{}/; }}", portal.address());
    let _nginx = nginx(&folder, &format!("server {{ listen {}; {location} }}\n", port.address()));
    wait_until(secs(10), "nginx answers", || TcpStream::connect(port.address()).is_ok());
    creates_a_user(&portal, &format!("http://portal.example:{}/a/pbx/", port.number()));
}

/// The page of the API that the browser finds at `own` shows the operations, and creates a user.
fn creates_a_user(portal: &Portal, own: &str) {
    let chromium = Chromium::start();
    chromium.open(&format!("{own}docs"));

    let operation = "#operations-Users-createUser";
    chromium.click(&format!("{operation} .opblock-summary-control"));
    let listed = chromium.run(
        "return [...document.querySelectorAll('.opblock')].map(operation => \
            operation.querySelector('.opblock-summary-method').innerText + ' ' + \
            operation.querySelector('.opblock-summary-path').dataset.path)",
        &[],
    );
    assert_eq!(listed, json!(["GET /users", "POST /users", "DELETE /users/{id}", "POST /apply"]));
    let schemas = chromium.run("return document.querySelector('section.models').className", &[]);
    assert_eq!(schemas, "models", "the list of schemas is folded");
    chromium.click("#operations-Apply-apply .opblock-summary-control");
    let example = chromium.text("#operations-Apply-apply .opblock-section-request-body code");
    assert!(example.contains(r#""triggered_by": "admin@example.com""#), "{example}");

    chromium.click(".btn.authorize");
    chromium.type_into(".auth-container input", "s3cret-token");
    chromium.click(".auth-btn-wrapper .authorize");
    chromium.click(".auth-btn-wrapper .btn-done");
    chromium.click(&format!("{operation} .try-out__btn"));
    chromium.click(&format!("{operation} .execute"));
    let answer = format!("{operation} .live-responses-table .response");
    assert_eq!(chromium.text(&format!("{answer} .response-col_status")).lines().next(), Some("201"));
    let shown = chromium.text(&format!("{answer} .response-col_description code"));
    let users = portal.users();
    assert_eq!(users, [serde_json::from_str::<Value>(&shown).expect(&shown)], "what the page shows is what there is");
    assert_eq!(users[0]["email"], "alice@example.com", "the document's example");

    assert_eq!(chromium.console(), Vec::<String>::new());
    let requests = chromium.requests();
    assert!(requests.contains(&format!("{own}users")), "{requests:?}");
    let foreign: Vec<_> = requests.iter().filter(|url| !url.starts_with(own) && !url.starts_with("data:")).collect();
    assert_eq!(foreign, Vec::<&String>::new());
}

/// What a page of the portal's own is answered for each operation.
const EACH_OPERATION: &str = "
    const [user, email] = arguments;
    const statuses = [];
    for (const [method, path, body] of [
        ['POST', '/users', {name: 'Bob', email}],
        ['GET', '/users'],
        ['DELETE', '/users/' + user],
        ['POST', '/apply', {triggered_by: 'Bob'}],
    ]) {
        const headers = {'content-type': 'application/json'};
        statuses.push((await fetch(path, {method, headers, body: JSON.stringify(body)})).status);
    }
    return statuses;
";

#[test]
fn a_page_of_another_origin_can_neither_do_nor_read_anything() {
    let (asterisk, open) = host();
    let guarded = Portal::start(&Settings::of(&asterisk).with("PORTAL_API_TOKEN", "s3cret-token"));
    let chromium = Chromium::start();
    let site = Site::start();
    // From another host, and from this one at another port; knowing the token does not help.
    for (portal, refusal, headers) in [
        (&open, 403, json!({})),
        (&guarded, 401, json!({})),
        (&guarded, 401, json!({"authorization": "Bearer s3cret-token"})),
    ] {
        for origin in ["evil.example", "127.0.0.1"] {
            let victim = portal.create_user("Alice", "alice@example.com");
            let path = format!("/users/{}", id(&victim));
            let (before, log) = (state(portal), portal.log().len());
            chromium.open(&format!("http://{origin}:{}/foreign_page.html", site.port.number()));
            let address = format!("http://{}", portal.address());
            let read =
                chromium.run("return attack(...arguments)", &[address.into(), id(&victim).into(), headers.clone()]);
            let answers = answers(&portal.log()[log..]);
            assert_eq!(read, json!([]), "what a page of {origin} could read");
            assert_eq!(state(portal), before);

            // It was the portal that refused. A page need not say where a mere GET comes from, as long as it can't read;
            // and a frame of the documentation stays empty, without its scripts.
            let mut expected = BTreeSet::from([("GET".to_owned(), "/docs/".to_owned(), 200)]);
            for (method, path) in [("GET", "/users"), ("POST", "/users"), ("POST", "/apply")] {
                expected.insert((method.to_owned(), path.to_owned(), refusal));
            }
            for path in ["/users", &path, "/apply"] {
                expected.insert(("OPTIONS".to_owned(), path.to_owned(), refusal));
            }
            if refusal == 403 {
                expected.insert(("GET".to_owned(), "/users".to_owned(), 200));
            }
            assert_eq!(answers, expected);
            portal.delete_user(id(&victim));
        }
    }
}

#[test]
fn a_page_of_another_name_for_this_machine_is_refused_and_its_own_page_is_not() {
    let (_asterisk, portal) = host();
    let chromium = Chromium::start();
    let port = portal.address().port();
    let ask = |host: &str| {
        let victim = portal.create_user("Alice", "alice@example.com");
        let before = state(&portal);
        chromium.open(&format!("http://{host}:{port}/docs/"));
        let statuses = chromium.run(EACH_OPERATION, &[id(&victim).into(), format!("bob@{host}").into()]);
        (statuses, before == state(&portal), id(&victim).to_owned())
    };
    // DNS rebinding: the browser holds the page and the portal for one host.
    let (statuses, unchanged, victim) = ask("evil.example");
    assert_eq!((statuses, unchanged), (json!([403, 403, 403, 403]), true));
    portal.delete_user(&victim);
    for host in ["127.0.0.1", "localhost"] {
        let (statuses, unchanged, _) = ask(host);
        assert_eq!((statuses, unchanged), (json!([201, 200, 200, 200]), false), "{host}");
    }
}

/// Whatever an operation can change.
fn state(portal: &Portal) -> (Vec<Value>, String) {
    (portal.users(), sqlite(portal, "SELECT count(*) FROM apply_audit_logs"))
}

/// A web site that is not the portal's.
struct Site {
    port: Ports,
    _server: Process,
    _folder: Folder,
}

impl Site {
    fn start() -> Self {
        let folder = Folder::new("site");
        write_file(&folder.path().join("foreign_page.html"), BROWSER, 0o644, include_str!("foreign_page.html"));
        let port = Ports::one();
        let mut command = command_as(BROWSER, &[], "python3");
        command
            .args(["-m", "http.server", "--bind", "127.0.0.1", &port.number().to_string()])
            .current_dir(folder.path());
        let server = Process::start(&mut command, &folder.path().join("log"));
        wait_until(secs(30), "the site answers", || TcpStream::connect(port.address()).is_ok());
        Self { port, _server: server, _folder: folder }
    }
}
