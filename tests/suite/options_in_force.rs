//! Each option of the generated endpoints, changed by hand in what Asterisk serves: `pbx-portal check` reports it, an apply mends it,
//! and an apply that cannot mend it fails and names it.

use std::fs;

use crate::fixtures::{account, failed_apply, host_with_script};

/// Another value of an option that Asterisk takes; none for what it does not show.
fn other(name: &str, value: &str) -> Option<String> {
    let other = match (name, value) {
        ("disallow", _) => return None,
        (_, "yes") => "no".to_owned(),
        (_, "no") => "yes".to_owned(),
        ("allow", _) => "ulaw".to_owned(),
        ("auth_type", _) => "digest".to_owned(),
        ("callerid", _) => "\"Mallory\" <1000>".to_owned(),
        (_, value) => value.parse::<u32>().map_or_else(|_| format!("{value}x"), |number| (number + 1).to_string()),
    };
    Some(other)
}

#[test]
fn each_option_in_force_is_reported_fixed_or_named() {
    let deaf = "test -e \"$here/deaf\" && [ \"$2\" = 'pjsip reload' ] && exec echo \"Module 'res_pjsip.so' reloaded successfully.\"\nexec $asterisk \"$@\"\n";
    let (asterisk, portal, folder) = host_with_script(deaf);
    let (number, secret) = account(&portal.create_user("Alice", "alice@example.com"));
    portal.apply("suite");
    let file = asterisk.endpoints_file();
    let whole = fs::read_to_string(&file).expect("the endpoints");
    let checked = || String::from_utf8(portal.run(&["check"]).stdout).expect("text");
    assert!(checked().contains("changes nothing"), "{}", checked());

    let mut changed = Vec::new();
    let mut object = "";
    for (line_number, line) in whole.lines().enumerate() {
        let Some((name, value)) = line.split_once('=') else { continue };
        if name == "type" {
            object = value;
            continue;
        }
        let Some(other) = other(name, value) else { continue };
        let objects = if object == "aor" { "AORs".to_owned() } else { format!("{object}s") };
        let words = format!("{objects} with another {name}: {number}");

        let lines = whole
            .lines()
            .enumerate()
            .map(|(index, line)| if index == line_number { format!("{name}={other}\n") } else { format!("{line}\n") });
        fs::write(&file, lines.collect::<String>()).expect("change the endpoints by hand");
        asterisk.rx("pjsip reload");
        let report = checked();
        assert!(report.contains("would change what Asterisk serves: ") && report.contains(&words), "{name}: {report}");

        fs::write(folder.path().join("deaf"), "").expect("make Asterisk deaf");
        // With another secret in force, the number belongs to somebody else: first it is taken away.
        let named = if name == "password" { format!("auths missing: {number}") } else { words };
        let failure = failed_apply(&portal, &[&named]).to_string();
        assert!(
            ![&secret, &other].iter().any(|value| name == "password" && failure.contains(value.as_str())),
            "{failure}"
        );
        fs::remove_file(folder.path().join("deaf")).expect("let it hear again");
        portal.apply("suite");
        assert!(checked().contains("changes nothing"), "{name}: {}", checked());
        changed.push(name);
    }
    assert!(changed.len() >= 19, "{changed:?}");
}
