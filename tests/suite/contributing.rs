//! The commands that the README and CONTRIBUTING.md give to a developer work. The targets of make that take long, or are what
//! runs this suite, are only seen to exist.

use std::env;
use std::fs;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use rustix::process::{Pid, kill_process_group};

use support::lab::Folder;
use support::process::{Process, Signal, run_within};
use support::{secs, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");
const README: &str = include_str!("../../README.md");

/// The lines of the blocks of shell commands, without their comments.
fn commands() -> Vec<&'static str> {
    let blocks = [README, CONTRIBUTING].into_iter().flat_map(|text| text.split("```sh\n").skip(1));
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap_or_default().lines());
    lines.map(|line| line.split('#').next().unwrap_or_default().trim()).collect()
}

#[test]
fn the_documents_name_targets_of_make_that_exist() {
    let mut count = 0;
    for target in commands().into_iter().filter_map(|line| line.strip_prefix("make ")) {
        let mut make = Command::new("make");
        make.args(["--dry-run", target]).current_dir(ROOT);
        let output = run_within(secs(60), &mut make);
        assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
        count += 1;
    }
    assert!(count >= 9, "only {count}");
}

/// Runs a command as it stands, in the project's folder, with the cargo that runs this test. What a command rewrites there is a
/// copy, in a mount namespace of its own.
#[test]
fn the_documents_commands_of_cargo_work_as_written() {
    let inline = Regex::new("`((?:[A-Z_]+=[0-9]+ )?cargo (?:test|run) [^`]*)`").expect("a regex");
    let inline = inline.captures_iter(CONTRIBUTING).map(|found| found.get(1).expect("a command").as_str());
    let all: Vec<_> = commands().into_iter().filter(|line| line.contains("cargo ")).chain(inline).collect();
    assert_eq!(all.len(), 6, "{all:?}");
    let passed = Regex::new(r"ok\. [1-9][0-9]* passed").expect("a regex");
    let rewritten = ["openapi.json", "tests/recordings/endpoint.txt"];
    let modified = |path: &Path| fs::metadata(path).expect("a file").modified().expect("its time");
    for command in all {
        let copies = Folder::new("copies");
        let script = format!(
            "cp --archive --parents openapi.json tests/recordings '{copies}'
             mount --bind '{copies}/openapi.json' openapi.json
             mount --bind '{copies}/tests/recordings' tests/recordings
             {command}",
            copies = copies.path().display()
        );
        let mut shell = Command::new("unshare");
        in_a_developers_shell(shell.args(["--mount", "bash", "-ec", &script]));
        let output = run_within(secs(300), &mut shell);
        let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{command}: {printed}");
        let is_test = command.contains("cargo test");
        assert_eq!(passed.is_match(&printed), is_test, "{printed}");
        let changed =
            rewritten.map(|file| modified(&copies.path().join(file)) != modified(&Path::new(ROOT).join(file)));
        assert_eq!(changed, [!is_test, command.contains("PBX_RECORD")], "{command} rewrites what it says");
    }
}

#[test]
fn make_run_serves_until_ctrl_c() {
    let folder = Folder::new("run");
    let log = folder.path().join("log");
    let mut make = Command::new("make");
    let mut run = Process::start(in_a_developers_shell(make.arg("run")), &log);
    let printed = || fs::read_to_string(&log).expect("read the output");
    wait_until(secs(120), "it serves, or another one of the developer's does", || {
        printed().contains("Ctrl-C ends both") || run.ended().is_some()
    });
    if printed().contains("is running already") {
        return;
    }
    let address = Regex::new("http://([0-9.:]+)/docs").expect("a regex");
    let address = address.captures(&printed()).expect("an address")[1].to_owned();
    assert!(TcpStream::connect(&address).is_ok(), "{address} answers");
    let group = Pid::from_raw(i32::try_from(run.pid()).expect("an id")).expect("an id");
    kill_process_group(group, Signal::INT).expect("press Ctrl-C");
    assert!(run.wait(secs(30)).is_some(), "it ends: {}", printed());
    assert!(printed().contains("ending the portal and Asterisk"), "{}", printed());
    assert!(TcpStream::connect(&address).is_err(), "{address} has ended");
}

/// The project's folder, and the cargo that runs this test, which sudo may have removed from `PATH`. Without what that cargo says of
/// this package, because build scripts that see it run again.
pub fn in_a_developers_shell(command: &mut Command) -> &mut Command {
    let cargo = env::var_os("CARGO").map(PathBuf::from);
    let folders = cargo.iter().filter_map(|cargo| cargo.parent().map(Path::to_owned));
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(folders.chain(env::split_paths(&path))).expect("a PATH");
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "OUT_DIR"]
            .iter()
            .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
        {
            command.env_remove(name);
        }
    }
    // What it runs is no test of this run.
    command.current_dir(ROOT).env("PATH", path).env_remove("PBX_TIMES")
}

#[test]
fn contributing_md_names_files_and_variables_that_exist() {
    let paths = Regex::new("`((?:src|tests|migrations|docs)/[^` ]*)`|`([a-z_]+\\.rs)`").expect("a regex");
    let root = Path::new(ROOT);
    let mut count = 0;
    for found in paths.captures_iter(CONTRIBUTING) {
        let path = found.get(1).map_or_else(|| format!("tests/suite/{}", &found[2]), |path| path.as_str().to_owned());
        assert!(root.join(&path).exists(), "{path}");
        count += 1;
    }
    assert!(count >= 10, "only {count}");
    let histories = include_str!("histories.rs");
    for variable in ["PBX_SEED", "PBX_STEPS"] {
        assert!(CONTRIBUTING.contains(variable) && histories.contains(variable), "{variable}");
    }
}

#[test]
fn the_readme_shows_the_demos_last_screen_as_the_demo_prints_it() {
    let (_, screen) = README.split_once("The demo's last screen:\n\n```text\n").expect("the screen");
    let screen = screen.split_once("```").expect("its end").0;
    let demo = include_str!("../demo/main.rs");
    let titles = Regex::new("(?m)^[0-9]+\\. (.*)$").expect("a regex");
    let mut steps: Vec<_> = titles.captures_iter(screen).map(|title| title[1].to_owned()).collect();
    assert_eq!(steps.len(), 3);
    steps.push(screen.lines().last().expect("a line").to_owned());
    for line in steps {
        assert!(demo.contains(&line), "{line}");
    }
}
