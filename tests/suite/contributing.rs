//! The commands that the README and CONTRIBUTING.md give to a developer exist and mean something. Running them from here would
//! run this suite in itself.

use std::path::Path;
use std::process::Command;

use regex::Regex;

use crate::support::process::run_within;
use crate::support::secs;

const CONTRIBUTING: &str = include_str!("../../CONTRIBUTING.md");
const README: &str = include_str!("../../README.md");

/// The lines of the blocks of shell commands, without their comments.
fn commands() -> Vec<&'static str> {
    let blocks = [README, CONTRIBUTING].into_iter().flat_map(|text| text.split("```sh\n").skip(1));
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap_or_default().lines());
    lines.map(|line| line.split('#').next().unwrap_or_default().trim()).collect()
}

#[test]
fn names_targets_of_make_that_there_are() {
    let mut count = 0;
    for target in commands().into_iter().filter_map(|line| line.strip_prefix("make ")) {
        let mut make = Command::new("make");
        make.args(["--dry-run", target]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = run_within(secs(60), &mut make);
        assert!(output.status.success(), "make {target}: {}", String::from_utf8_lossy(&output.stderr));
        count += 1;
    }
    assert!(count >= 9, "only {count}");
}

#[test]
fn names_tests_that_there_are() {
    let mut count = 0;
    for line in commands().into_iter().filter(|line| line.contains("cargo test")) {
        let filter = line.rsplit(' ').next().expect("a filter");
        if line.contains("--lib") {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/asterisk").join(filter);
            assert!(folder.is_dir(), "{line}");
        } else {
            let mut list = Command::new(std::env::current_exe().expect("this program"));
            let output = run_within(secs(60), list.args(["--list", filter]));
            assert!(String::from_utf8_lossy(&output.stdout).contains(": test"), "no test: {line}");
        }
        count += 1;
    }
    assert_eq!(count, 4);
}

#[test]
fn names_files_and_variables_that_there_are() {
    let paths = Regex::new("`((?:src|tests|migrations|docs)/[^` ]*)`|`([a-z_]+\\.rs)`").expect("a regex");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
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
fn shows_the_demos_last_screen_as_the_demo_prints_it() {
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
