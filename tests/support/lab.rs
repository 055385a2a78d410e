//! What every part of the lab needs: its folder, unprivileged users, ports, and a watchdog.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// A user and a group of one number that need no line in /etc/passwd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(pub u32);

/// Runs Asterisk and owns its configuration.
pub const ASTERISK: User = User(59001);
/// Runs the portal, with Asterisk's group as a supplementary one; owns the two include folders.
pub const PORTAL: User = User(59002);
/// Runs clients of the portal's API: the browser, the tests of the contract.
pub const BROWSER: User = User(59003);

/// The folder of the lab, with the Asterisk root that `make setup` made.
pub fn dir() -> &'static Path {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        assert!(
            rustix::process::geteuid().is_root(),
            "the lab runs Asterisk, PostgreSQL and the portal as users of their own, so it needs root: run `make test`"
        );
        let dir =
            std::env::var_os("PBX_LAB_DIR").map_or_else(|| PathBuf::from("/var/cache/pbx-portal-lab"), PathBuf::from);
        assert!(dir.join("asterisk").is_dir(), "no Asterisk in {}: run `make setup`", dir.display());
        dir
    });
    &DIR
}

/// Creates a folder that belongs to a user.
pub fn make_dir(path: &Path, owner: u32, group: u32, mode: u32) {
    fs::create_dir_all(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    chown(path, Some(owner), Some(group)).expect("chown a lab folder");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod a lab folder");
}

/// Writes a file that belongs to a user.
pub fn write_file(path: &Path, User(owner): User, mode: u32, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    chown(path, Some(owner), Some(owner)).expect("chown a lab file");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod a lab file");
}

/// Installs a program that every user may run. Another process does it: a descriptor open for writing that another
/// thread's child inherits for a moment would make running the program fail as "text file busy".
pub fn install_program(source: &Path, target: &Path) {
    let status = Command::new("install").arg("--mode=755").args([source, target]).status().expect("run install");
    assert!(status.success(), "install {}: {status}", target.display());
}

/// The folder of one instance, removed with it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        TIMED.with(|_| ());
        let path = process_folder().join(format!("{}-{name}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Held by a test that measures time or memory: they run one after another.
pub fn measuring() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the test on this thread takes, from its first folder to its end. `make test` shows the slowest.
struct Timed {
    test: String,
    began: Instant,
}

thread_local! {
    static TIMED: Option<Timed> = {
        // A test's thread has its name; threads that it starts have none.
        let test = thread::current().name().filter(|name| name.contains("::")).map(str::to_owned);
        test.map(|test| Timed { test, began: Instant::now() })
    };
}

impl Drop for Timed {
    fn drop(&mut self) {
        let Some(times) = std::env::var_os("PBX_TIMES") else { return };
        let line = format!("{:7.1} s  {}\n", self.began.elapsed().as_secs_f64(), self.test);
        let file = OpenOptions::new().create(true).append(true).open(times);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// A small disk (tmpfs) in a folder of its own, which can be filled up.
#[derive(Debug)]
pub struct SmallDisk(Folder);

impl SmallDisk {
    pub fn new(User(owner): User, mebibytes: u8) -> Self {
        let disk = Self(Folder::new("disk"));
        let options = format!("size={mebibytes}m,uid={owner},gid={owner},mode=700");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(disk.path()).status();
        assert!(mount.expect("run mount").success(), "a disk can't be mounted");
        disk
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it up to the last byte.
    pub fn fill(&self) {
        let mut filler = File::create(self.path().join("filler")).expect("make the filler");
        for size in [64 * 1024, 1] {
            let piece = vec![b'x'; size];
            while filler.write_all(&piece).is_ok() {}
        }
    }

    pub fn free(&self) {
        fs::remove_file(self.path().join("filler")).expect("remove the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Loopback ports of our own, as long as the value lives: a locked file keeps other lab processes out. They lie below
/// the range from which the kernel gives ports to clients. A process takes them in turn, because an Asterisk still
/// knows the phone that was there.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    lock: File,
}

impl Ports {
    pub fn one() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::reserve(&NEXT, 10_000..20_000, 1)
    }

    /// Two hundred in a row: SIP and RTP of an Asterisk.
    pub fn block() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self::reserve(&NEXT, 20_000..32_600, 200)
    }

    pub fn number(&self) -> u16 {
        self.first
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.first).into()
    }

    fn reserve(next: &AtomicU32, range: std::ops::Range<u16>, count: u16) -> Self {
        let locks = dir().join("ports");
        fs::create_dir_all(&locks).expect("make the folder of port locks");
        let choices: Vec<u16> = range.step_by(count.into()).collect();
        for _ in &choices {
            // Processes start at different ports.
            let choice = std::process::id().wrapping_mul(37).wrapping_add(next.fetch_add(1, Ordering::Relaxed));
            let first = choices[choice as usize % choices.len()];
            let file = OpenOptions::new().create(true).append(true).open(locks.join(first.to_string()));
            let ports = Self { first, lock: file.expect("open a port lock") };
            if ports.lock.try_lock().is_ok() && is_free(ports.address()) {
                return ports;
            }
        }
        panic!("no free loopback port is left for the lab");
    }
}

/// Whether nobody uses this port, over UDP and TCP.
pub fn is_free(address: SocketAddr) -> bool {
    UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
}

/// This test process's folder and the pipe to its watchdog, which removes it.
struct ThisProcess {
    folder: PathBuf,
    watchdog: Mutex<ChildStdin>,
}

static THIS_PROCESS: LazyLock<ThisProcess> = LazyLock::new(|| {
    let folder = dir().join("tests").join(std::process::id().to_string());
    // A process of the same id may have been killed together with its watchdog.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let watchdog = Mutex::new(start_watchdog(&folder));
    ThisProcess { folder, watchdog }
});

pub fn process_folder() -> &'static Path {
    &THIS_PROCESS.folder
}

/// Tells the watchdog to end a process when this one ends, however it ends.
pub fn guard(pid: u32) {
    tell_watchdog("guard", pid);
}

/// Tells the watchdog that the process has ended: its id may soon belong to another.
pub fn release(pid: u32) {
    tell_watchdog("release", pid);
}

fn tell_watchdog(what: &str, pid: u32) {
    // A pipe is intact even if a test panicked while it held the lock.
    let mut watchdog = THIS_PROCESS.watchdog.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(watchdog, "{what} {pid}").expect("tell the watchdog");
}

/// Reads ids from a pipe that closes when the test process ends, even by SIGKILL. What a test had stopped goes on
/// first; SIGQUIT then, because PostgreSQL frees its shared memory only where it ends itself. What a test had mounted or
/// made immutable would keep the folder.
const WATCHDOG: &str = r#"
guarded=
while read -r what pid; do
    others=
    for p in $guarded; do [ "$p" = "$pid" ] || others="$others $p"; done
    guarded=$others
    [ "$what" = release ] || guarded="$guarded $pid"
done
if [ -n "$guarded" ]; then
    for p in $guarded; do kill -CONT $p $(cat /proc/$p/task/$p/children); done
    kill -QUIT $guarded; sleep 1; kill -KILL $guarded
fi 2>/dev/null
{
    awk -v folder="$1/" 'index($2, folder) == 1 { print $2 }' /proc/self/mounts | xargs -r umount --lazy
    chattr -R -f -i "$1"
} 2>/dev/null
rm -rf "$1"
"#;

#[expect(clippy::zombie_processes, reason = "the watchdog outlives this process")]
fn start_watchdog(folder: &Path) -> ChildStdin {
    let mut watchdog = Command::new("sh")
        .args(["-c", WATCHDOG, "watchdog"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0) // a Ctrl-C in the terminal is not for it
        .spawn()
        .expect("start the watchdog");
    watchdog.stdin.take().expect("the watchdog's pipe")
}
