//! A real Asterisk 22 with a configuration, a control socket and ports of its own, run as the user [`lab::ASTERISK`].

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use super::lab::{self, Folder, Ports, install_program, make_dir, write_file};
use super::process::{Process, Signal, command_as};
use super::{secs, wait_until};

const ENDPOINTS: &str = "pjsip.d/synergycall/generated_endpoints.conf";
const ROUTING: &str = "extensions.d/synergycall/generated_routing.conf";

/// How an instance differs from the default.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one way to differ")]
pub struct Options {
    /// Text after the include line of `pjsip.conf`, of `extensions.conf`, and at the end of `modules.conf`.
    pub pjsip: String,
    pub extensions: String,
    pub modules: String,
    /// Without the two include lines.
    pub without_includes: bool,
    /// Without `cli_aliases.conf`, so that `pjsip reload` is an unknown command.
    pub without_cli_aliases: bool,
    /// Use this folder and keep it, instead of one that is removed with the instance.
    pub keep_in: Option<PathBuf>,
    /// The SIP port, instead of any free one.
    pub sip_port: Option<u16>,
    /// Asterisk 16 instead of 22.
    pub old: bool,
    /// No transport at all.
    pub without_transport: bool,
    /// Listen for SIP over UDP on `[::1]`, too.
    pub ipv6: bool,
    /// Let [`Asterisk::hold`] work.
    pub holds: bool,
}

/// Where a thread of Asterisk can be held; `hold.c` says how.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// A SIP request whose password is right stays in the queue that it came in, before it is handled.
    Requests,
    /// A reload of several modules waits behind the first that Asterisk drops because another reload is running.
    Drops,
}

/// A running Asterisk. Drop stops it.
pub struct Asterisk {
    dir: PathBuf,
    sip: SocketAddr,
    process: Mutex<Option<Process>>,
    ports: Ports,
    holds: bool,
    _folder: Option<Folder>,
}

/// Where phones reach it.
impl From<&Asterisk> for SocketAddr {
    fn from(asterisk: &Asterisk) -> Self {
        asterisk.sip()
    }
}

impl Asterisk {
    /// Starts an Asterisk that is set up for the portal: with the include lines and folders, but no generated file yet.
    pub fn start() -> Self {
        Self::start_with(&Options::default())
    }

    pub fn start_with(options: &Options) -> Self {
        let ports = Ports::block();
        let folder = options.keep_in.is_none().then(|| Folder::new("asterisk"));
        let dir = match (&options.keep_in, &folder) {
            (Some(dir), _) => dir.clone(),
            (None, Some(folder)) => folder.path().to_owned(),
            (None, None) => unreachable!("one of the two is there"),
        };
        let mut sip = ports.address();
        if let Some(port) = options.sip_port {
            sip.set_port(port);
        }
        let holds = options.holds;
        let asterisk = Self { dir, sip, process: Mutex::new(None), ports, holds, _folder: folder };
        asterisk.configure(options);
        asterisk.boot();
        asterisk
    }

    /// This instance's `/etc/asterisk`.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// The folder of the control socket.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The command `asterisk` of this instance.
    pub fn bin(&self) -> PathBuf {
        self.dir.join("asterisk")
    }

    /// Its SIP address, for UDP and TCP.
    pub fn sip(&self) -> SocketAddr {
        self.sip
    }

    /// Its SIP address over IPv6, if its options ask for one.
    pub fn sip6(&self) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, self.sip.port()).into()
    }

    pub fn endpoints_file(&self) -> PathBuf {
        self.etc().join(ENDPOINTS)
    }

    pub fn routing_file(&self) -> PathBuf {
        self.etc().join(ROUTING)
    }

    /// What Asterisk logged: notices, warnings, errors.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log/messages.log")).unwrap_or_default()
    }

    /// What Asterisk prints for a command. Asks over its control socket, which takes less than a millisecond; `asterisk -rx` takes
    /// twenty and prints the same.
    #[track_caller]
    pub fn rx(&self, command: &str) -> String {
        self.try_rx(command).unwrap_or_else(|error| panic!("{command}: {error}\n{}", self.console()))
    }

    /// Like [`Asterisk::rx`]; fails if nobody listens on the control socket.
    pub fn try_rx(&self, command: &str) -> io::Result<String> {
        // A test may give it another name.
        let sockets = list(&self.run_dir()).into_iter().filter(|file| file.extension().is_some_and(|end| end == "ctl"));
        let mut socket = sockets
            .map(UnixStream::connect)
            .find_map(Result::ok)
            .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        socket.set_read_timeout(Some(secs(30)))?;
        socket.write_all(format!("cli quit after {command}\0").as_bytes())?;
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).replace('\0', "");
        let (_greeting, printed) = answer.split_once('\n').unwrap_or_default();
        Ok(printed.to_owned())
    }

    /// What Asterisk lists for a command, whole: it drops lines if the reader is slow. `parse` returns `None` for such a listing, which
    /// is then read again.
    #[track_caller]
    fn listing<T>(&self, command: &str, parse: impl Fn(&str) -> Option<T>) -> T {
        for _ in 0..10 {
            if let Some(parsed) = parse(&self.rx(command)) {
                return parsed;
            }
        }
        panic!("'{command}' is truncated ten times:\n{}", self.rx(command));
    }

    /// The endpoints in force, sorted.
    #[track_caller]
    pub fn endpoints(&self) -> Vec<String> {
        self.listing("pjsip show endpoints", |listing| {
            let names = listing.lines().filter_map(|line| line.strip_prefix(" Endpoint:  ")?.split(['/', ' ']).next());
            let names = sorted(names.filter(|name| !name.starts_with('<')));
            let is_whole = match listing.lines().find_map(|line| line.strip_prefix("Objects found: ")) {
                Some(count) => count.trim().parse() == Ok(names.len()),
                None => listing.contains("No objects found."),
            };
            is_whole.then_some(names)
        })
    }

    /// The extensions in force, sorted.
    #[track_caller]
    pub fn routed(&self) -> Vec<String> {
        self.routing().into_keys().collect()
    }

    /// The extensions in force, with what the first line of each shows.
    #[track_caller]
    pub fn routing(&self) -> BTreeMap<String, String> {
        self.listing("dialplan show synergy-internal", |listing| {
            let rows = listing.lines().filter_map(|line| line.trim_start().strip_prefix('\'')?.split_once("' =>"));
            let rows: BTreeMap<_, _> = rows.map(|(name, first)| (name.to_owned(), first.to_owned())).collect();
            // `-= 2 extensions (4 priorities) in 1 context. =-`
            let trailer = listing.lines().find_map(|line| line.strip_prefix("-= ")?.split_once(" extension"));
            let is_whole = match trailer {
                Some((count, _)) => count.parse() == Ok(rows.len()),
                None => listing.contains("There is no existence of 'synergy-internal' context"),
            };
            is_whole.then_some(rows)
        })
    }

    /// The registrations in Asterisk's database: the key of each, such as `1000;@` and a hash, and its JSON.
    #[track_caller]
    pub fn contacts(&self) -> Vec<(String, String)> {
        self.listing("database show registrar/contact", |listing| {
            let rows = listing.lines().filter_map(|row| row.strip_prefix("/registrar/contact/")?.split_once(": "));
            let rows: Vec<_> = rows.map(|(key, json)| (key.trim_end().to_owned(), json.to_owned())).collect();
            let trailer = listing.lines().find_map(|line| line.strip_suffix(" results found."));
            (trailer?.parse() == Ok(rows.len())).then_some(rows)
        })
    }

    /// Writes a configuration file as its administrator, its name relative to [`Asterisk::etc`].
    pub fn write_config(&self, name: &str, text: &str) {
        write_file(&self.etc().join(name), lab::ASTERISK, 0o640, text);
    }

    /// Changes a configuration file as its administrator.
    pub fn edit_config(&self, name: &str, edit: impl FnOnce(&str) -> String) {
        let text = fs::read_to_string(self.etc().join(name)).expect("read a configuration file");
        self.write_config(name, &edit(&text));
    }

    pub fn wait_booted(&self) {
        wait_until(secs(60), "Asterisk has fully booted", || {
            if let Some(status) = self.process().as_mut().and_then(Process::ended) {
                panic!("Asterisk ended while it booted, {status}:\n{}", self.console());
            }
            let says = |command: &str, words: &str| self.try_rx(command).is_ok_and(|answer| answer.contains(words));
            // It knows its last commands a moment after it has booted.
            says("core waitfullybooted", "fully booted") && says("core show settings", "PBX UUID")
        });
    }

    /// Stops it as a service manager does.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Kills it by SIGKILL.
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// Whether it has ended by a fault of its own (SIGSEGV, SIGABRT or SIGBUS).
    pub fn crashed(&self) -> bool {
        let ended = self.process().as_mut().and_then(Process::ended);
        ended.and_then(|status| status.signal()).is_some_and(|signal| {
            [Signal::SEGV, Signal::ABORT, Signal::BUS].iter().any(|fault| fault.as_raw() == signal)
        })
    }

    /// Starts it again after [`Asterisk::stop`] or [`Asterisk::kill`], and waits until it is up.
    pub fn boot(&self) {
        self.begin_to_boot();
        self.wait_booted();
    }

    /// Like [`Asterisk::boot`], without waiting.
    pub fn begin_to_boot(&self) {
        let mut command = command_as(lab::ASTERISK, &[], self.bin());
        command.arg("-f").current_dir(&self.dir);
        if self.holds {
            command.env("LD_PRELOAD", self.etc().join("hold.so")).env("PBX_HOLD", self.etc().join("hold"));
        }
        let process = Process::start(&mut command, &self.dir.join("log/console"));
        *self.process() = Some(process);
    }

    /// From now on threads are held at this step.
    pub fn hold(&self, at: Step) {
        let _ = fs::remove_file(self.hold_file(at).with_added_extension("held"));
        write_file(&self.hold_file(at), lab::ASTERISK, 0o640, "");
    }

    /// How many were held.
    pub fn held(&self, at: Step) -> u64 {
        fs::metadata(self.hold_file(at).with_added_extension("held")).map_or(0, |file| file.len())
    }

    pub fn release(&self, at: Step) {
        fs::remove_file(self.hold_file(at)).expect("let them go on");
    }

    fn hold_file(&self, at: Step) -> PathBuf {
        self.etc().join(match at {
            Step::Requests => "hold.requests",
            Step::Drops => "hold.drops",
        })
    }

    pub fn restart(&self) {
        self.stop();
        self.boot();
    }

    pub fn pid(&self) -> u32 {
        self.process().as_ref().expect("Asterisk is running").pid()
    }

    /// Sends a signal: `Signal::STOP` makes it hang, `Signal::CONT` continues it.
    pub fn signal(&self, signal: Signal) {
        self.process().as_mut().expect("Asterisk is running").signal(signal);
    }

    fn end(&self, signal: Signal) {
        if let Some(mut process) = self.process().take() {
            process.end(signal, secs(10));
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no test panics while it holds this")
    }

    fn console(&self) -> String {
        fs::read_to_string(self.dir.join("log/console")).unwrap_or_default()
    }

    fn configure(&self, options: &Options) {
        let lab::User(owner) = lab::ASTERISK;
        let lab::User(portal) = lab::PORTAL;
        for folder in ["db", "lib", "log", "run", "spool", "etc", "etc/pjsip.d", "etc/extensions.d"] {
            make_dir(&self.dir.join(folder), owner, owner, 0o750);
        }
        for file in [self.endpoints_file(), self.routing_file()] {
            let folder = file.parent().expect("a file lies in a folder");
            make_dir(folder, portal, owner, 0o2750);
        }
        let root = Root(lab::dir().join(if options.old { "asterisk-16" } else { "asterisk" }));
        let wrapper = self.dir.join("asterisk.sh");
        write_file(&wrapper, lab::ASTERISK, 0o644, &root.wrapper(&self.etc()));
        install_program(&wrapper, &self.bin());
        self.write_config("asterisk.conf", &root.asterisk_conf(&self.dir));
        if self.holds {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("hold.c");
            let library = self.etc().join("hold.so");
            let mut compiler = Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source);
            assert!(compiler.status().expect("run cc").success(), "a library can't be compiled");
            fs::set_permissions(library, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        self.write_config("logger.conf", "[logfiles]\nmessages.log => notice,warning,error\n");
        self.write_config("modules.conf", &format!("{MODULES}{}", options.modules));
        let port = self.ports.number();
        self.write_config("rtp.conf", &format!("[general]\nrtpstart={}\nrtpend={}\n", port + 20, port + 199));
        if !options.without_cli_aliases {
            let aliases = root.0.join("etc/asterisk/cli_aliases.conf");
            let aliases = fs::read_to_string(aliases).expect("read Debian's cli_aliases.conf");
            self.write_config("cli_aliases.conf", &aliases);
        }
        let include = |file| if options.without_includes { String::new() } else { format!("#tryinclude {file}\n") };
        let transport =
            |name, protocol, bind| format!("[transport-{name}]\ntype=transport\nprotocol={protocol}\nbind={bind}\n\n");
        let mut transports = String::new();
        if !options.without_transport {
            transports += &transport("udp", "udp", self.sip);
            transports += &transport("tcp", "tcp", self.sip);
        }
        if options.ipv6 {
            transports += &transport("ipv6", "udp", self.sip6());
        }
        self.write_config("pjsip.conf", &format!("{transports}{}{}", include(ENDPOINTS), options.pjsip));
        self.write_config("extensions.conf", &format!("[general]\n\n{}{}", include(ROUTING), options.extensions));
    }
}

/// A program of the root of Debian unstable, run as a user: the command, to which its arguments are added.
pub fn command_from_unstable(user: lab::User, program: &str) -> Command {
    let root = Root(lab::dir().join("asterisk"));
    let libraries = root.libraries();
    let mut command = command_as(user, &[], Root::loader(&libraries));
    command.arg("--library-path").arg(&libraries).arg(root.0.join(program));
    command
}

/// All modules but those that listen on ports of their own.
const MODULES: &str = "[modules]
autoload=yes
noload=chan_iax2.so
noload=chan_sip.so
noload=chan_skinny.so
noload=chan_unistim.so
noload=pbx_dundi.so
noload=res_hep.so
noload=res_snmp.so
";

/// A root that `make setup` made. Its programs run without chroot, so that paths are the same for everybody.
struct Root(PathBuf);

impl Root {
    /// The folder of libraries, which is named after the architecture.
    fn libraries(&self) -> PathBuf {
        list(&self.0.join("usr/lib"))
            .into_iter()
            .find(|folder| folder.is_dir() && list(folder).iter().any(|file| is_loader(file)))
            .expect("a root has libraries")
    }

    /// The dynamic loader of the root, because the machine's own C library may be older.
    fn loader(libraries: &Path) -> PathBuf {
        list(libraries).into_iter().find(|file| is_loader(file)).expect("a root has a dynamic loader")
    }

    /// Where Asterisk's modules lie: Debian 11 keeps them, and Asterisk's own libraries, beside the libraries' folder.
    fn modules(&self) -> PathBuf {
        let beside = self.0.join("usr/lib/asterisk/modules");
        if beside.is_dir() { beside } else { self.libraries().join("asterisk/modules") }
    }

    fn wrapper(&self, etc: &Path) -> String {
        let libraries = self.libraries();
        format!(
            "#!/bin/sh\nexec {} --library-path {}:{} {} -C {} \"$@\"\n",
            Self::loader(&libraries).display(),
            libraries.display(),
            self.0.join("usr/lib").display(),
            self.0.join("usr/sbin/asterisk").display(),
            etc.join("asterisk.conf").display(),
        )
    }

    fn asterisk_conf(&self, instance: &Path) -> String {
        format!(
            "[directories]
astetcdir => {instance}/etc
astmoddir => {modules}
astvarlibdir => {instance}/lib
astdbdir => {instance}/db
astkeydir => {instance}/lib
astdatadir => {root}/usr/share/asterisk
astagidir => {instance}/lib/agi-bin
astspooldir => {instance}/spool
astrundir => {instance}/run
astlogdir => {instance}/log
astsbindir => {root}/usr/sbin

[files]
astctlpermissions = 0660
",
            instance = instance.display(),
            modules = self.modules().display(),
            root = self.0.display(),
        )
    }
}

fn is_loader(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
}

fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort_unstable();
    names
}

fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("list a folder").path()).collect()
}
