//! A whole server: a Debian root with systemd, Asterisk and PostgreSQL, booted by `systemd-nspawn` in namespaces of its own.
//! Its disk is a layer over the root that `make setup` made, and does not change that root. Its network is a loopback of its own.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::lab::{self, Folder, make_dir};
use super::process::{Process, Signal, run_within};
use super::{secs, wait_until};

/// Mounts the layers where only the machine sees them, so that they go with it. Where the lab's folder lies on layers itself, as in
/// a container, none can be put on it: then the disk is a copy.
const DISK: &str = r#"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/disk,workdir=$2/work" "$2/root" ||
    [ -e "$2/root/usr" ] || cp --archive "$1/." "$2/root"
"#;

/// Becomes `systemd-nspawn`. The variable gives the machine a hierarchy of control groups that its systemd takes, also on a host
/// with the older one.
const BOOT: &str = r#"
echo '127.0.0.1 localhost server' >"$2/root/etc/hosts"
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec systemd-nspawn --directory="$2/root" --boot --machine=server --private-network --keep-unit --register=no
"#;

/// A booted server. Drop ends it.
pub struct Machine {
    process: Mutex<Process>,
    /// The host's id of its process 1.
    leader: AtomicU32,
    folder: Folder,
    /// Two machines at a time would share a control group.
    _alone: File,
}

impl Machine {
    /// Boots a fresh one, and waits until every unit is up.
    pub fn boot() -> Self {
        let alone = File::create(lab::dir().join("machine.lock")).expect("open the machine's lock");
        alone.lock().expect("wait for the machine's lock");
        let folder = disk();
        let process = Mutex::new(start(&folder));
        let machine = Self { process, leader: AtomicU32::new(0), folder, _alone: alone };
        machine.wait_until_up();
        machine
    }

    /// Shuts it down and boots it again, and waits until every unit is up. Its network namespace is a new one.
    pub fn reboot(&self) {
        // What asks for it may be ended by it.
        self.try_run("systemctl reboot");
        let ended = self.process().wait(secs(120));
        assert!(ended.is_some(), "the machine does not shut down:\n{}", self.console());
        lab::release(self.leader.swap(0, Ordering::Relaxed));
        *self.process() = start(&self.folder);
        self.wait_until_up();
    }

    /// Runs a shell script in it as root, which must succeed, and gives what it printed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let [stdout, stderr] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{script}: {}\n{stdout}{stderr}", output.status);
        stdout.trim_end().to_owned()
    }

    /// Like [`Machine::run`], but the script may fail.
    pub fn try_run(&self, script: &str) -> Output {
        let leader = self.leader.load(Ordering::Relaxed).to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &leader, "--all", "sh", "-ec", script]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        run_within(secs(180), &mut command)
    }

    /// Does something on a thread that is in its network: what it connects to, and processes it starts, are there too.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.leader.load(Ordering::Relaxed)));
        let network = network.expect("open the machine's network");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                use std::os::fd::AsFd as _;
                move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("enter the machine's network");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Where the host sees one of its files.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader.load(Ordering::Relaxed)))
    }

    fn wait_until_up(&self) {
        wait_until(secs(120), "the machine has a process 1", || {
            let status = self.process().ended();
            assert!(status.is_none(), "the machine ended, {status:?}:\n{}", self.console());
            let pid = self.process().pid();
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let leader = children.split_whitespace().filter_map(|child| child.parse().ok()).find(|child: &u32| {
                fs::read_to_string(format!("/proc/{child}/comm")).is_ok_and(|comm| comm == "systemd\n")
            });
            self.leader.store(leader.unwrap_or(0), Ordering::Relaxed);
            leader.is_some()
        });
        // It outlives systemd-nspawn.
        lab::guard(self.leader.load(Ordering::Relaxed));
        wait_until(secs(120), "the machine is up", || {
            let output = self.try_run("systemctl is-system-running --wait");
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert_ne!(state, "degraded", "{}", self.run("systemctl --failed; journalctl --boot --priority=warning"));
            state == "running"
        });
    }

    fn console(&self) -> String {
        fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A folder for a machine's disk.
fn disk() -> Folder {
    let folder = Folder::new("machine");
    for name in ["disk", "work", "root"] {
        make_dir(&folder.path().join(name), 0, 0, 0o755);
    }
    folder
}

/// A shell script that begins with the disk of a machine in its `$2/root`. Nobody else sees that disk.
fn with_disk(folder: &Folder, script: &str) -> Command {
    let root = lab::dir().join("server");
    assert!(root.is_dir(), "no machine in {}: run `make setup`", lab::dir().display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-ec", &[DISK, script].concat(), "sh"]);
    command.arg(root).arg(folder.path());
    command
}

/// Boots it.
fn start(folder: &Folder) -> Process {
    Process::start(&mut with_disk(folder, BOOT), &folder.path().join("console"))
}

/// Runs a shell script as root on the disk of a machine that is not booted, with the source tree in `/mnt`.
pub fn run_unbooted(bound: Duration, script: &str) -> Output {
    const ENTER: &str = r#"
mount --bind "$3" "$2/root/mnt"
exec unshare --pid --fork --kill-child --mount-proc="$2/root/proc" chroot "$2/root" sh -ec "$4"
"#;
    let folder = disk();
    let mut command = with_disk(&folder, ENTER);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    run_within(bound, command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).arg(script))
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel ends all its processes with process 1, and systemd-nspawn ends after them.
        let leader = self.leader.load(Ordering::Relaxed);
        if let Some(process_1) = i32::try_from(leader).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process_1, Signal::KILL);
            let _ = self.process().wait(secs(20));
            lab::release(leader);
        }
        self.process().end(Signal::KILL, secs(10));
    }
}
