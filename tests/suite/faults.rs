//! docs/faults.md says what happens at each fault, and which test shows it: a row without such a test is an untested promise.

use std::fs;
use std::path::Path;

#[test]
fn each_row_of_faults_md_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/faults.md")).expect("docs/faults.md");
    // Rows begin below a table's head, which ends with a line of dashes.
    let rows =
        text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|-") && !line.starts_with("| fault"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "fault, what is done, what happens, what the administrator sees, test: {row}");
        let tests: Vec<_> = cells[4].split('`').filter(|name| name.contains("::")).collect();
        assert!(!tests.is_empty(), "no test shows it: {row}");
        for test in tests {
            assert!(exists(root, test), "there is no test {test}: {row}");
        }
        count += 1;
    }
    assert!(count >= 30, "only {count} rows: is the table read at all?");
}

/// `module::name` is a test of this suite, `src/…::name` one beside the code.
fn exists(root: &Path, test: &str) -> bool {
    let (module, name) = test.rsplit_once("::").expect("a test's path");
    let file = if module.starts_with("src/") {
        root.join(module)
    } else {
        root.join("tests/suite").join(format!("{module}.rs"))
    };
    let code = fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<_> = code.lines().map(str::trim).collect();
    let is_test = |line: &str| ["#[test]", "#[tokio::test]"].contains(&line);
    lines
        .windows(2)
        .any(|pair| is_test(pair[0]) && pair[1].trim_start_matches("async ").starts_with(&format!("fn {name}(")))
}
