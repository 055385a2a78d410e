//! A real browser: Chromium without a window, driven over WebDriver. It knows no host but this machine, which it finds
//! under every name that ends in `.example`.

use std::os::unix::fs::chown;
use std::process::Command;

use serde_json::{Value, json};

use super::lab::{BROWSER, Folder, Ports, User};
use super::process::Process;
use super::{secs, wait_until};

/// How WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. Drop ends it.
pub struct Chromium {
    session: String,
    // Dropped last: Chromium's profile is removed after it has ended.
    _driver: Process,
    _folder: Folder,
    _port: Ports,
}

impl Chromium {
    pub fn start() -> Self {
        let folder = Folder::new("chromium");
        let User(user) = BROWSER;
        chown(folder.path(), Some(user), Some(user)).expect("chown the browser's folder");
        let port = Ports::one();
        // Chromium outlives its driver and starts processes in sessions of their own: none outlives a namespace of processes.
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--pid", "--mount-proc", "--kill-child", "setpriv", "--pdeathsig=KILL", "--clear-groups"])
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args(["--", "chromedriver", &format!("--port={}", port.number())])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", folder.path())
            .current_dir(folder.path());
        let driver = Process::start(&mut command, &folder.path().join("log"));
        let root = format!("http://{}", port.address());
        wait_until(secs(30), "the browser's driver answers", || {
            send("GET", &format!("{root}/status"), &Value::Null).is_ok_and(|status| status["ready"] == true)
        });
        let options = json!({
            "binary": "/usr/bin/chromium",
            "args": [
                "--headless=new",
                "--no-sandbox", // its pages are ours, and a container may not allow one
                "--disable-dev-shm-usage",
                "--window-size=1280,1600",
                format!("--user-data-dir={}", folder.path().join("profile").display()),
                "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        });
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            // Commands wait for their elements.
            "timeouts": {"implicit": 20_000},
        });
        let new = json!({"capabilities": {"alwaysMatch": capabilities}});
        let session =
            send("POST", &format!("{root}/session"), &new).unwrap_or_else(|error| panic!("a browser: {error}"));
        let session = format!("{root}/session/{}", session["sessionId"].as_str().expect("a session"));
        Self { session, _driver: driver, _folder: folder, _port: port }
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// Runs a script in the page as the body of a function, and gives what it returns, or what its promise does.
    pub fn run(&self, script: &str, arguments: &[Value]) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": arguments}))
    }

    /// Clicks on the first element of this CSS selector.
    pub fn click(&self, css: &str) {
        self.command(&format!("{}/click", self.element(css)), &json!({}));
    }

    /// Types into the first element of this CSS selector.
    pub fn type_into(&self, css: &str, text: &str) {
        self.command(&format!("{}/value", self.element(css)), &json!({"text": text}));
    }

    /// What the first element of this CSS selector shows.
    pub fn text(&self, css: &str) -> String {
        let text = self.ask("GET", &format!("{}/text", self.element(css)), &Value::Null);
        text.as_str().expect("a text").to_owned()
    }

    /// The console's lines since the last call.
    pub fn console(&self) -> Vec<String> {
        let entries = self.log("browser");
        entries.iter().map(|entry| format!("{} {}", entry["level"], entry["message"])).collect()
    }

    /// The addresses that pages requested since the last call, even if nothing was sent; without those of the browser's own
    /// pages.
    pub fn requests(&self) -> Vec<String> {
        let events = self.log("performance").into_iter().map(|entry| {
            let event: Value = serde_json::from_str(entry["message"].as_str().expect("an event")).expect("JSON");
            event["message"].clone()
        });
        let requests = events.filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = requests.map(|event| event["params"]["request"]["url"].as_str().expect("a URL").to_owned());
        urls.filter(|url| !url.starts_with("chrome:")).collect()
    }

    fn element(&self, css: &str) -> String {
        let element = self.command("element", &json!({"using": "css selector", "value": css}));
        format!("element/{}", element[ELEMENT].as_str().expect("an element"))
    }

    fn log(&self, kind: &str) -> Vec<Value> {
        match self.command("se/log", &json!({"type": kind})) {
            Value::Array(entries) => entries,
            other => panic!("the browser's {kind} log: {other}"),
        }
    }

    #[track_caller]
    fn command(&self, name: &str, parameters: &Value) -> Value {
        self.ask("POST", name, parameters)
    }

    #[track_caller]
    fn ask(&self, method: &str, name: &str, parameters: &Value) -> Value {
        let answer = send(method, &format!("{}/{name}", self.session), parameters);
        answer.unwrap_or_else(|error| panic!("the browser: {name} {parameters}: {error}"))
    }
}

/// Sends a command and gives its value.
fn send(method: &str, url: &str, parameters: &Value) -> Result<Value, String> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(secs(120))).build();
    let request = ureq::http::Request::builder().method(method).uri(url);
    let sent = match parameters {
        Value::Null => agent.new_agent().run(request.body(()).expect("a request")),
        _ => agent.new_agent().run(request.body(parameters.to_string()).expect("a request")),
    };
    let mut answer = sent.map_err(|error| error.to_string())?;
    let ok = answer.status().is_success();
    let mut body: Value = answer.body_mut().read_json().map_err(|error| error.to_string())?;
    if ok { Ok(body["value"].take()) } else { Err(body["value"]["message"].to_string()) }
}
