//! What a collector of logs gets: one line a request, one for each step of an apply, tied together by identifiers.

use serde_json::Value;

use crate::steps::{LOGGED, PROVEN};
use support::portal::Settings;
use support::{Asterisk, Portal};

#[test]
fn the_log_has_one_line_a_request_and_one_a_step_with_their_ids() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("LOG_FORMAT", "json"));
    portal.create_user("Alice", "alice@example.com");
    let applied = portal.apply("suite");
    let audit_log_id = applied["audit_log_id"].as_str().expect("an id");

    let log = portal.log();
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let answered: Vec<_> = lines.iter().filter(|line| line["message"] == "answered").collect();
    let apply = answered.iter().find(|line| line["path"] == "/apply").expect("the request's line");
    assert!(apply["method"] == "POST" && apply["status"] == 200 && apply["milliseconds"].is_f64(), "{apply}");
    let id = &apply["span"]["id"];
    assert_eq!(answered.iter().filter(|line| line["span"]["id"] == *id).count(), 1, "one line a request");

    let steps: Vec<_> = lines.iter().filter(|line| line["step"].is_string()).collect();
    let names: Vec<_> = steps.iter().filter_map(|line| line["step"].as_str()).collect();
    assert_eq!(names, LOGGED);
    for step in steps {
        assert!(step["milliseconds"].is_f64() && step["span"]["audit_log_id"] == audit_log_id, "{step}");
        assert!(step["spans"].as_array().is_some_and(|spans| spans.iter().any(|span| span["id"] == *id)), "{step}");
    }
    let proven = lines.iter().find(|line| line["message"] == PROVEN).expect("the end");
    assert_eq!(proven["audit_log_id"], audit_log_id);
}

#[test]
fn the_request_id_is_the_clients_or_a_new_one_in_head_body_and_log() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk));
    let refused = |sent: Option<&str>| {
        let url = format!("http://{}/users", portal.address());
        let mut request = ureq::post(url).config().http_status_as_error(false).build();
        if let Some(id) = sent {
            request = request.header("x-request-id", id);
        }
        let mut answer = request.header("content-type", "application/json").send("{}").expect("an answer");
        let head = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
        let body: Value = answer.body_mut().read_json().expect("JSON");
        assert_eq!(body["request_id"], head.as_str(), "{body}");
        assert!(portal.log().contains(&format!("request{{id=\"{head}\"}}")), "{head} in {}", portal.log());
        head
    };
    assert_eq!(refused(Some("ticket-4711")), "ticket-4711");
    let (first, second) = (refused(None), refused(Some("")));
    assert!(first != second && first.len() == 36 && second.len() == 36, "{first}, {second}");
    let long = "x".repeat(200);
    assert_ne!(refused(Some(&long)), long, "an id of any length is not taken");
}

#[test]
fn the_service_manager_hears_regularly_that_the_event_loop_lives() {
    let folder = std::env::temp_dir().join(format!("pbx-portal-watchdog-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let socket = folder.join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&socket).expect("a socket");
    manager.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a bound");
    for path in [&folder, &socket] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("open to the portal");
    }
    let settings = Settings::default().with("NOTIFY_SOCKET", socket.to_str().expect("UTF-8"));
    let portal = Portal::start(&settings.with("WATCHDOG_USEC", "200000"));
    let mut message = [0; 64];
    let mut told = || {
        let length = manager.recv(&mut message).expect("a message in time");
        // Each state is a line; systemd takes the last one with and without its end.
        String::from_utf8_lossy(&message[..length]).trim_end().to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert_eq!([told(), told(), told()], ["WATCHDOG=1"; 3]);
    drop(portal);
    std::fs::remove_dir_all(&folder).expect("its folder goes");
}
