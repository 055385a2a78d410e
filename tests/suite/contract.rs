//! Every answer that the API's document promises is asked for over HTTP, and has the shape that it promises.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::fixtures::{id, sqlite, without_asterisk};
use support::lab::{Folder, Ports};
use support::portal::Settings;
use support::postgres::Options;
use support::{Asterisk, Portal, Postgres};

/// Asks, and holds each answer against the document.
struct Client<'a> {
    address: SocketAddr,
    seen: &'a mut BTreeSet<(String, String)>,
}

impl Client<'_> {
    /// Sends exactly these headers and this body; gives status and body.
    fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> (u16, Value) {
        let body = body.as_ref();
        let mut stream = TcpStream::connect(self.address).expect("connect");
        let own_host = self.address.to_string();
        let host = headers.iter().all(|(name, _)| *name != "host").then_some(("host", own_host.as_str()));
        let headers: Vec<_> =
            headers.iter().copied().chain(host).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n{}",
            body.len(),
            headers.concat()
        );
        stream.write_all(&[format!("{head}\r\n").as_bytes(), body].concat()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status: u16 = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        assert!(head.contains("x-request-id: "), "{head}");
        assert!(head.contains("content-type: application/json"), "{method} {path}: {head}");
        assert!(head.contains("cache-control: no-store") && head.contains("x-content-type-options: nosniff"), "{head}");
        assert_eq!(head.contains("www-authenticate: Bearer"), status == 401, "{head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        self.check(method, path, status, &body);
        (status, body)
    }

    fn json(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.ask(method, path, &[("content-type", "application/json")], body.to_string())
    }

    fn check(&mut self, method: &str, path: &str, status: u16, body: &Value) {
        let document = document();
        let template = if path.starts_with("/users/") { "/users/{id}" } else { path };
        let Some(operation) = document["paths"][template].get(method.to_lowercase()) else {
            assert!(matches!(status, 401 | 404 | 405), "{method} {path} is no operation, but {status}");
            return;
        };
        let response = &operation["responses"][status.to_string()];
        let mut schema = response["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{method} {path} answers {status}, which the document does not have: {body}");
        schema["components"] = document["components"].clone();
        let validator = jsonschema::draft202012::new(&schema).expect("a schema");
        let errors: Vec<_> =
            validator.iter_errors(body).map(|error| format!("{} at {}", error, error.instance_path())).collect();
        assert!(errors.is_empty(), "{method} {path} {status}: {errors:?}\n{body}");
        self.seen.insert((format!("{method} {template}"), status.to_string()));
    }
}

fn document() -> Value {
    serde_json::from_str(include_str!("../../openapi.json")).expect("JSON")
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table of all answers")]
fn every_status_of_every_operation() {
    let asterisk = Asterisk::start();
    let mut seen = BTreeSet::new();
    let new_user = |index: u16| json!({"name": "Alice", "email": format!("alice{index}@example.com")});
    let by = json!({"triggered_by": "suite"});
    let unknown = "/users/0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90";

    let portal = Portal::start(&Settings::of(&asterisk));
    let mut client = Client { address: portal.address(), seen: &mut seen };
    let phrase = |(status, body): (u16, Value)| (status, body["error"].as_str().unwrap_or("").to_owned());
    let is = |status, text: &str| (status, text.to_owned());

    assert_eq!(client.ask("GET", "/users", &[], ""), (200, json!({"users": []})));
    let (status, alice) = client.json("POST", "/users", &new_user(1));
    assert_eq!(status, 201);
    assert_eq!(client.ask("GET", "/users", &[], ""), (200, json!({"users": [alice]})));
    assert_eq!(client.json("POST", "/apply", &by).0, 200);

    // 400: every bad field at once, and no field that there isn't.
    let (status, body) = client.json("POST", "/users", &json!({"name": " ", "email": "alice", "admin": true}));
    let fields: Vec<_> =
        body["details"].as_array().expect("details").iter().map(|detail| detail["field"].as_str()).collect();
    assert_eq!((status, fields), (400, vec![Some("name"), Some("email"), Some("admin")]));
    for body in [
        json!({}),
        json!({"name": 1, "email": null}),
        json!([]),
        json!("x"),
        json!({"name": "a\u{0}b", "email": "a@b"}),
    ] {
        assert_eq!(phrase(client.json("POST", "/users", &body)), is(400, "Validation failed"), "{body}");
    }
    for text in ["", "{", "{\"name\":\"\\ud800\",\"email\":\"a@b\"}"] {
        assert_eq!(client.ask("POST", "/users", &[("content-type", "application/json")], text).0, 400, "{text}");
    }
    for body in [json!({}), json!({"triggered_by": ""}), json!({"triggered_by": "x", "dry_run": true})] {
        assert_eq!(phrase(client.json("POST", "/apply", &body)), is(400, "Validation failed"), "{body}");
    }
    for bad in [
        "/users/1000",
        "/users/%FF",
        "/users/0b9ad2e43f0c4c1e9d6e1f8a2b7c5d90",
        "/users/%7B0b9ad2e4-3f0c-4c1e-9d6e-1f8a2b7c5d90%7D",
    ] {
        assert_eq!(phrase(client.ask("DELETE", bad, &[], "")), is(400, "Validation failed"), "{bad}");
    }

    // 403: a page of another origin, and one that calls this machine by another name.
    for headers in [[("origin", "https://evil.example")], [("origin", "null")], [("host", "evil.example")]] {
        for (method, path) in [("POST", "/users"), ("GET", "/users"), ("DELETE", unknown), ("POST", "/apply")] {
            assert_eq!(
                phrase(client.ask(method, path, &headers, "")),
                is(403, "Forbidden"),
                "{method} {path} {headers:?}"
            );
        }
    }

    // 404 and 405, 409, 413 and 415.
    assert_eq!(phrase(client.ask("DELETE", unknown, &[], "")), is(404, "User not found"));
    assert_eq!(phrase(client.ask("GET", "/nothing", &[], "")), is(404, "Not found"));
    assert_eq!(phrase(client.ask("PUT", "/users", &[], "")), is(405, "Method not allowed"));
    let shouted = json!({"name": "Again", "email": "ALICE1@EXAMPLE.COM"});
    assert_eq!(phrase(client.json("POST", "/users", &shouted)), is(409, "Email already in use"));
    let large = json!({"name": "a".repeat(17 * 1024)});
    let plain = [("content-type", "text/plain")];
    for path in ["/users", "/apply"] {
        assert_eq!(phrase(client.json("POST", path, &large)), is(413, "Payload too large"));
        assert_eq!(phrase(client.ask("POST", path, &plain, "{}")), is(415, "Unsupported media type"));
    }
    let lock = File::open(asterisk.endpoints_file().with_file_name(".pbx-portal.lock")).expect("the lock file");
    lock.lock().expect("lock it");
    assert_eq!(phrase(client.json("POST", "/apply", &by)), is(409, "Apply in progress"));
    drop(lock);
    asterisk.stop();
    assert_eq!(phrase(client.json("POST", "/apply", &by)), is(500, "Apply operation failed"));
    let (status, body) = client.ask("DELETE", &format!("/users/{}", id(&alice)), &[], "");
    assert_eq!((status, body["freed_extension"].as_u64()), (200, Some(1000)));
    sqlite(
        &portal,
        "PRAGMA foreign_keys = on; WITH RECURSIVE n(i) AS (SELECT 1000 UNION ALL SELECT i + 1 FROM n WHERE i < 1999) \
         INSERT INTO users SELECT 'u' || i, 'a0000000-0000-0000-0000-000000000000', 'x', i || '@x', '2026-01-01T00:00:00Z' FROM n; \
         INSERT INTO extensions SELECT 'e' || email, CAST(email AS INTEGER), id, 'x', created_at FROM users",
    );
    assert_eq!(phrase(client.json("POST", "/users", &new_user(2))), is(409, "Extension pool exhausted"));

    // 401: with a token, everything but the documentation.
    let guarded = Portal::start(&Settings::of(&asterisk).with("PORTAL_API_TOKEN", "s3cret-token"));
    let mut client = Client { address: guarded.address(), seen: &mut seen };
    for authorization in ["", "Bearer", "Bearer wrong", "Bearer s3cret-toke", "Basic s3cret-token", "s3cret-token"] {
        for (method, path) in
            [("POST", "/users"), ("GET", "/users"), ("DELETE", unknown), ("POST", "/apply"), ("GET", "/nothing")]
        {
            let answer = client.ask(method, path, &[("authorization", authorization)], "");
            assert_eq!(phrase(answer), is(401, "Unauthorized"), "{method} {path} {authorization:?}");
        }
    }
    let token = ("authorization", "Bearer s3cret-token");
    let twice = client.ask("GET", "/users", &[token, token], "");
    assert_eq!(phrase(twice), is(401, "Unauthorized"), "which of two does a proxy look at?");
    assert_eq!(client.ask("GET", "/users", &[("authorization", "bearer s3cret-token")], "").0, 200);
    assert_eq!(
        client.ask("GET", "/users", &[token, ("host", "portal.example"), ("origin", "https://evil.example")], "").0,
        200
    );
    assert!(
        ureq::get(format!("http://{}/openapi.json", guarded.address())).call().is_ok(),
        "the documentation is open"
    );
    assert!(!guarded.log().contains("s3cret-token"));

    // 503.
    let cluster = Postgres::start(&Options::default());
    let orphan = Portal::start(&Settings::of(&asterisk).with("DATABASE_URL", cluster.new_database()));
    cluster.stop();
    let asked = [
        ("POST", "/users", new_user(3)),
        ("GET", "/users", json!({})),
        ("DELETE", unknown, json!({})),
        ("POST", "/apply", by),
    ];
    // At once, because each takes the seconds in which the database might come back.
    std::thread::scope(|scope| {
        let asking = asked.map(|(method, path, body)| {
            let address = orphan.address();
            scope.spawn(move || {
                let mut seen = BTreeSet::new();
                let answer = Client { address, seen: &mut seen }.json(method, path, &body);
                assert_eq!(phrase(answer), is(503, "Database unavailable"));
                seen
            })
        });
        seen.extend(asking.into_iter().flat_map(|asking| asking.join().expect("an answer")));
    });

    let document = document();
    let mut promised = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let name = format!("{} {path}", method.to_uppercase());
            promised.extend(
                operation["responses"]
                    .as_object()
                    .expect("responses")
                    .keys()
                    .map(|status| (name.clone(), status.clone())),
            );
        }
    }
    // What should never be can't be asked for.
    promised.retain(|(operation, status)| status != "500" || operation == "POST /apply");
    assert_eq!(
        promised.difference(&seen).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "promised, but never seen"
    );
}

#[test]
fn a_request_without_a_token_names_this_host_and_comes_through_no_proxy() {
    let everywhere = Ports::one();
    let listen = ("PORTAL_LISTEN", format!("0.0.0.0:{}", everywhere.number()));
    let with = |settings: Settings, (name, value): (&str, String)| settings.with(name, value);
    let settings = || without_asterisk().with("PORTAL_HOST", "pbx-berlin");
    let allowed = || settings().with("PORTAL_ALLOW_UNAUTHENTICATED", "true");
    // The names of this host, whatever machine runs the test.
    let names = "hostname pbx && mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let folder = Folder::new("hosts");
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n127.0.1.1 pbx.example.com pbx # pbx.evil.example\n")
        .expect("write it");
    let hosts = hosts.display().to_string();
    let launcher = ["unshare", "--user", "--map-root-user", "--mount", "--uts", "sh", "-c", names, &hosts];
    for (portal, proxied) in [
        (Portal::prepare(&settings()), false),
        (Portal::prepare(&allowed()), true),
        (Portal::prepare(&with(allowed(), listen)), true),
    ] {
        portal.boot_through(&launcher);
        let mut seen = BTreeSet::new();
        let mut client = Client { address: portal.address(), seen: &mut seen };
        let own = [
            "127.0.0.1",
            "192.0.2.1:80",
            "[2001:db8::1]:8000",
            "LocalHost:8000",
            "pbx-berlin",
            "PBX",
            "pbx.example.com:8000",
        ];
        let others = [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "pbx.evil.example",
            "example.com",
            "",
        ];
        for (hosts, expected) in [(&own, 200), (&others, 403)] {
            for host in hosts {
                let (status, body) = client.ask("GET", "/users", &[("host", host)], "");
                assert_eq!(status, expected, "{host}: {body}");
                assert!(
                    status == 200
                        || body["message"].as_str().is_some_and(|message| message.contains("this host's name"))
                );
            }
        }
        for header in ["Forwarded", "X-Forwarded-For", "x-forwarded-proto", "X-Forwarded-Prefix", "X-Real-IP"] {
            for (method, path) in [("GET", "/users"), ("POST", "/users"), ("DELETE", "/users/x"), ("POST", "/apply")] {
                let (status, body) = client.ask(method, path, &[(header, "192.0.2.1")], "");
                assert_eq!(status == 403, !proxied, "{header}: {body}");
                let message = body["message"].as_str().unwrap_or_default();
                assert!(
                    proxied || message.contains("set PORTAL_API_TOKEN, or say PORTAL_ALLOW_UNAUTHENTICATED=true"),
                    "{body}"
                );
            }
        }
        let page =
            ureq::get(format!("http://{}/docs/", portal.address())).header("x-forwarded-for", "192.0.2.1").call();
        assert!(page.is_ok(), "the documentation is open");
    }
    // With a token, the token is what counts.
    let guarded = Portal::start(&without_asterisk().with("PORTAL_API_TOKEN", "s3cret-token"));
    let mut seen = BTreeSet::new();
    let mut client = Client { address: guarded.address(), seen: &mut seen };
    let through = [
        ("authorization", "Bearer   s3cret-token"),
        ("host", "pbx.elsewhere.example"),
        ("x-forwarded-for", "192.0.2.1"),
    ];
    assert_eq!(client.ask("GET", "/users", &through, "").0, 200);
    assert_eq!(client.ask("GET", "/users", &[("authorization", "Bearers3cret-token")], "").0, 401);
    assert_eq!(client.ask("GET", "/users", &[("authorization", "Bearer\ts3cret-token")], "").0, 200);
}

#[test]
fn a_body_is_one_clean_json_object() {
    let portal = Portal::start(&Settings::default());
    let mut seen = BTreeSet::new();
    let mut client = Client { address: portal.address(), seen: &mut seen };
    let json = [("content-type", "application/json")];
    let good = r#"{"name":"Alice","email":"alice@example.com"}"#;
    let nested = format!(r#"{{"name":{}1{},"email":"alice@example.com"}}"#, "[".repeat(5000), "]".repeat(5000));
    let latin1 = b"{\"name\":\"Ren\xe9\",\"email\":\"alice@example.com\"}";
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, body, field, says) in [
        (
            "a name twice",
            br#"{"name":"Alice","email":"a@example.com","name":"Mallory"}"#.as_slice(),
            "name",
            "only once",
        ),
        (
            "a name twice, escaped",
            br#"{"name":"Alice","email":"a@example.com","n\u0061me":"Alice"}"#,
            "name",
            "only once",
        ),
        ("an unknown name twice", br#"{"name":"Alice","email":"a@example.com","x":1,"x":1}"#, "x", "only once"),
        (
            "an object within",
            br#"{"name":{"name":"a","name":"b"},"email":"a@example.com"}"#,
            "name",
            "must be a string",
        ),
        ("a number", br#"{"name":123456789012345678901234567890,"email":"a@example.com"}"#, "name", "must be a string"),
        ("no number", br#"{"name":1e999,"email":"a@example.com"}"#, "body", "number out of range"),
        ("Latin-1", latin1, "body", "in UTF-8"),
        ("UTF-16", &utf16, "body", "in UTF-8"),
        ("UTF-16 with a byte-order mark", &[b"\xff\xfe", utf16.as_slice()].concat(), "body", "in UTF-8"),
        ("compressed, without saying so", b"\x1f\x8b\x08\x00\x00", "body", "in UTF-8"),
        ("deep nesting", nested.as_bytes(), "body", "recursion limit"),
        ("two byte-order marks", &["\u{feff}\u{feff}", good].concat().into_bytes(), "body", "expected value"),
        ("something after it", &[good, "{}"].concat().into_bytes(), "body", "trailing characters"),
        ("a list", b"[]", "body", "must be a JSON object"),
        ("half of it", b"{\"name\":\"Al", "body", "EOF while parsing"),
        ("nothing", b"", "body", "EOF while parsing"),
    ] {
        let (status, answer) = client.ask("POST", "/users", &json, body);
        let detail = &answer["details"][0];
        assert_eq!((status, detail["field"].as_str()), (400, Some(field)), "{name}: {answer}");
        assert!(detail["message"].as_str().is_some_and(|message| message.contains(says)), "{name}: {answer}");
    }
    // JSON is UTF-8, whatever is said of a charset.
    for (index, kind) in
        ["application/json; charset=utf-8", "Application/JSON;charset=\"UTF-8\"", "application/json; charset=latin1"]
            .into_iter()
            .enumerate()
    {
        let body = json!({"name": "Ren\u{e9}", "email": format!("rene{index}@example.com")});
        let (status, user) = client.ask("POST", "/users", &[("content-type", kind)], body.to_string());
        assert_eq!((status, user["name"].as_str()), (201, Some("Ren\u{e9}")), "{kind}");
    }
    let marked = ["\u{feff}", good].concat();
    assert_eq!(client.ask("POST", "/users", &json, marked).0, 201, "a byte-order mark is skipped");
    let (kind, body) = (json[0], good.replace("alice@", "bob@"));
    assert_eq!(client.ask("POST", "/users", &[kind, ("content-encoding", "Identity")], &body).0, 201);
    for encoding in ["gzip", "br", "identity, gzip"] {
        for path in ["/users", "/apply"] {
            let (status, answer) = client.ask("POST", path, &[kind, ("content-encoding", encoding)], b"\x1f\x8b\x08");
            let message = answer["message"].as_str().unwrap_or_default();
            assert!(status == 415 && message.contains("without a Content-Encoding"), "{encoding}: {answer}");
        }
    }
    for kind in ["text/json", "application/jsonp", "application/x-www-form-urlencoded", ""] {
        assert_eq!(client.ask("POST", "/users", &[("content-type", kind)], good).0, 415, "{kind}");
    }
    assert_eq!(client.ask("POST", "/users", &[], good).0, 415);
}
