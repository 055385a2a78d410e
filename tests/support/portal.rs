//! The portal itself: its binary, run as the user [`lab::PORTAL`] in a clean environment.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::{LazyLock, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::lab::{self, Folder, Ports, User, install_program, make_dir};
use super::process::{Process, Signal, command_as, run_within};
use super::{Asterisk, secs, wait_until};

/// Environment variables of a portal.
#[derive(Clone, Default)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// For a portal on the host of this Asterisk.
    pub fn of(asterisk: &Asterisk) -> Self {
        Self::default()
            .with("ASTERISK_CONFIG_DIR", asterisk.etc().display())
            .with("ASTERISK_RUN_DIR", asterisk.run_dir().display())
            .with("ASTERISK_BIN", asterisk.bin().display())
    }

    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "reads better where it is called")]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }
}

/// An HTTP response. `json` is null for a body that is not JSON.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub text: String,
    pub json: Value,
}

/// A portal. Drop ends it.
pub struct Portal {
    folder: Folder,
    settings: Settings,
    address: SocketAddr,
    process: Mutex<Option<Process>>,
    _port: Ports,
}

impl Portal {
    /// Starts `pbx-portal serve` on a free port with a data folder of its own, unless the settings say otherwise,
    /// and waits until it answers.
    pub fn start(settings: &Settings) -> Self {
        let portal = Self::prepare(settings);
        portal.boot();
        portal
    }

    /// Like [`Portal::start`], without starting it.
    pub fn prepare(settings: &Settings) -> Self {
        let folder = Folder::new("portal");
        let port = Ports::one();
        let User(owner) = lab::PORTAL;
        let data = folder.path().join("data");
        make_dir(&data, owner, owner, 0o700);
        let mut settings = settings.clone();
        let mut default = |name: &str, value: String| settings.0.entry(name.into()).or_insert(value).clone();
        default("PORTAL_DATA_DIR", data.display().to_string());
        // The log then shows how far an apply is.
        default("LOG_LEVEL", "debug".to_owned());
        let listen = default("PORTAL_LISTEN", port.address().to_string());
        Self {
            folder,
            settings,
            address: listen.parse().expect("PORTAL_LISTEN is an address and a port"),
            process: Mutex::new(None),
            _port: port,
        }
    }

    /// Runs another command with its settings: `["check"]`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        run(arguments, &self.settings)
    }

    /// Starts it, again after [`Portal::stop`] or [`Portal::kill`], and waits until it answers.
    pub fn boot(&self) {
        self.boot_through(&[]);
    }

    /// Like [`Portal::boot`], through another program that runs it with a limit or a umask: `["prlimit", "--nofile=64"]`.
    pub fn boot_through(&self, launcher: &[&str]) {
        let log = self.log_file();
        self.boot_by(lab::PORTAL, launcher, |serve| Process::start(serve, &log));
    }

    /// Like [`Portal::boot`], as root instead of the portal's user.
    pub fn boot_as_root(&self) {
        let log = self.log_file();
        self.boot_by(User(0), &[], |serve| Process::start(serve, &log));
    }

    /// Like [`Portal::boot`], with its output on the terminal.
    pub fn boot_attached(&self) {
        self.boot_by(lab::PORTAL, &[], Process::start_attached);
    }

    fn boot_by(&self, user: User, launcher: &[&str], start: impl FnOnce(&mut Command) -> Process) {
        let mut command = command_through(user, launcher, &self.settings, self.folder.path());
        *self.process() = Some(start(command.arg("serve")));
        wait_until(secs(30), "the portal answers", || {
            if let Some(status) = self.ended() {
                panic!("the portal ended, {status}:\n{}", self.log());
            }
            self.try_request("GET", "/users", None).is_ok()
        });
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it printed, standard output and error, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The folder of its default database.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(&self.settings.0["PORTAL_DATA_DIR"])
    }

    /// The folder that it is started in, and reads `.env` from.
    pub fn work_dir(&self) -> &Path {
        self.folder.path()
    }

    /// Its environment.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("the portal is running").pid()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process().as_mut().and_then(Process::ended)
    }

    pub fn signal(&self, signal: Signal) {
        self.process().as_mut().expect("the portal is running").signal(signal);
    }

    /// The most memory that it ever used, in MiB.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read its status");
        let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        value.and_then(|value| value.parse::<u64>().ok()).unwrap_or_else(|| panic!("no VmHWM in {status}")) / 1024
    }

    pub fn running(&self) -> bool {
        self.process().is_some()
    }

    /// Stops it as a service manager does, by SIGKILL after a minute. Gives its exit status.
    pub fn stop(&self) -> ExitStatus {
        let process = self.process().take();
        process.expect("the portal is running").end(Signal::TERM, secs(60))
    }

    /// Kills it by SIGKILL.
    pub fn kill(&self) {
        let process = self.process().take();
        process.expect("the portal is running").end(Signal::KILL, secs(10));
    }

    /// Sends a request; panics when there is no answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.try_request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}\n{}", self.log()))
    }

    pub fn try_request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, ureq::Error> {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(secs(120)))
            .build()
            .new_agent();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(token) = self.settings.0.get("PORTAL_API_TOKEN") {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = match body {
            Some(json) => agent.run(request.header("content-type", "application/json").body(json.to_string())?)?,
            None => agent.run(request.body(())?)?,
        };
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        let headers = headers.collect();
        let status = response.status().as_u16();
        let text = response.body_mut().read_to_string()?;
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, headers, text, json })
    }

    /// Sends a request and gives the connection, so that a test can read the answer, or not.
    pub fn begin_post(&self, path: &str, body: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).expect("connect");
        client.write_all(raw_post(path, body).as_bytes()).expect("send");
        client
    }

    /// Creates a user, which must succeed. Gives the answer.
    #[track_caller]
    pub fn create_user(&self, name: &str, email: &str) -> Value {
        self.expect(201, "POST", "/users", Some(&json!({"name": name, "email": email})))
    }

    /// All users, which must succeed.
    #[track_caller]
    pub fn users(&self) -> Vec<Value> {
        match self.expect(200, "GET", "/users", None)["users"].take() {
            Value::Array(users) => users,
            other => panic!("GET /users: not a list: {other}"),
        }
    }

    /// Deletes a user, which must succeed.
    #[track_caller]
    pub fn delete_user(&self, id: &str) -> Value {
        self.expect(200, "DELETE", &format!("/users/{id}"), None)
    }

    /// Applies, which must succeed.
    #[track_caller]
    pub fn apply(&self, triggered_by: &str) -> Value {
        self.expect(200, "POST", "/apply", Some(&json!({"triggered_by": triggered_by})))
    }

    #[track_caller]
    fn expect(&self, status: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
        let answer = self.request(method, path, body);
        assert_eq!(answer.status, status, "{method} {path}: {}\n{}", answer.text, self.log());
        answer.json
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no test panics while it holds this")
    }
}

/// The bytes of a POST of JSON.
pub fn raw_post(path: &str, body: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json");
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Runs the binary to its end, at most a minute, in a folder of its own.
pub fn run(arguments: &[&str], settings: &Settings) -> Output {
    let folder = Folder::new("portal-run");
    run_within(secs(60), portal_command(settings, folder.path()).args(arguments))
}

/// The program that cargo built: cargo names it; a test program that runs by itself finds it beside its own folder, `deps`.
fn built() -> PathBuf {
    env::var_os("CARGO_BIN_EXE_pbx-portal").map_or_else(
        || {
            let program = env::current_exe().expect("the test program's path");
            let folder = program.parent().and_then(Path::parent).expect("the folder of the profile");
            folder.join("pbx-portal")
        },
        PathBuf::from,
    )
}

/// The command `pbx-portal` with exactly these settings.
pub fn portal_command(settings: &Settings, work_dir: &Path) -> Command {
    command_through(lab::PORTAL, &[], settings, work_dir)
}

fn command_through(user: User, launcher: &[&str], settings: &Settings, work_dir: &Path) -> Command {
    // A copy that the portal's user can run: the clone may lie in a home that is closed to others.
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let binary = lab::process_folder().join("pbx-portal");
        install_program(&built(), &binary);
        binary
    });
    // Not for the program that becomes the portal's user: it is still root.
    let preload = settings.0.get("LD_PRELOAD").map(|library| format!("LD_PRELOAD={library}"));
    let preload = preload.iter().flat_map(|variable| [Path::new("env"), Path::new(variable)]);
    let line: Vec<_> = launcher.iter().map(Path::new).chain(preload).chain([BINARY.as_path()]).collect();
    let mut command = command_as(user, &[lab::ASTERISK], line[0]);
    command.args(&line[1..]).envs(&settings.0).env_remove("LD_PRELOAD").current_dir(work_dir);
    command
}
