//! The README and docs/operations.md on a whole server: each command is run as it stands, in the order in which it stands.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use regex::Regex;
use serde_json::Value;

use crate::fixtures::{account, id};
use crate::from_source;
use crate::package::package;
use support::portal::Settings;
use support::process::run_within;
use support::{Machine, Portal, secs};

/// Commands of a document, with the heading that they stand under.
pub struct Commands {
    pub heading: String,
    /// `sh`, or `console` with what was answered.
    language: String,
    pub text: String,
}

pub fn commands(document: &str) -> Vec<Commands> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).expect(document);
    let (mut commands, mut heading, mut open) = (Vec::new(), String::new(), None::<(usize, Commands)>);
    for line in text.lines() {
        if let Some((indent, mut block)) = open.take() {
            if line.trim_start() == "```" {
                commands.push(block);
            } else {
                block.text += line.get(indent..).unwrap_or_default();
                block.text += "\n";
                open = Some((indent, block));
            }
        } else if let Some(language) = line.trim_start().strip_prefix("```") {
            let indent = line.len() - line.trim_start().len();
            let block = Commands { heading: heading.clone(), language: language.to_owned(), text: String::new() };
            open = Some((indent, block));
        } else if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut heading);
        }
    }
    commands.retain(|block| ["sh", "console"].contains(&block.language.as_str()));
    commands
}

/// A server on which the documents are followed.
struct Server {
    machine: Machine,
    portal: Portal,
}

impl Server {
    /// Types a block; make's targets were run before.
    fn types(&self, block: &Commands) -> String {
        let lines = block.text.lines().filter(|line| !line.starts_with("make "));
        self.machine.run(&format!("cd /root\n{}", lines.collect::<Vec<_>>().join("\n")))
    }

    /// The settings ask for a token by now, or not.
    fn log_in(&mut self) {
        let token = self.machine.run("sed -n 's/^PORTAL_API_TOKEN=//p' /etc/pbx-portal/pbx-portal.env");
        let settings = Settings::default().with("PORTAL_LISTEN", "127.0.0.1:8000");
        self.portal =
            Portal::prepare(&if token.is_empty() { settings } else { settings.with("PORTAL_API_TOKEN", token) });
    }

    fn users(&self) -> Vec<Value> {
        self.machine.inside(|| self.portal.users())
    }

    fn applies(&self) -> Value {
        self.machine.inside(|| self.portal.apply("suite"))
    }

    fn creates(&self, name: &str) -> Value {
        self.machine.inside(|| self.portal.create_user(name, &format!("{name}@example.com")))
    }

    /// Somebody new has the first user's number, and Asterisk serves them.
    fn changes_hands(&self) {
        let first = self.users().remove(0);
        self.machine.inside(|| self.portal.delete_user(id(&first)));
        assert_eq!(account(&self.creates("another")).0, account(&first).0);
        self.applies();
    }

    /// Answers a statement about the audit log, in the database of the block.
    fn sql(&self, block: &Commands, sql: &str) -> String {
        let postgres = format!(
            "cd / && runuser -u postgres -- psql --quiet --tuples-only --no-align --dbname=portal --command=\"{sql}\""
        );
        let sqlite = format!("runuser -u pbx-portal -- sqlite3 /var/lib/pbx-portal/portal.db \"{sql}\"");
        self.machine.run(if block.text.contains("postgres") { &postgres } else { &sqlite })
    }

    /// One row is three years old.
    fn ages_an_audit_row(&self, block: &Commands) {
        let one = "id = (SELECT id FROM apply_audit_logs ORDER BY triggered_at LIMIT 1)";
        self.sql(block, &format!("UPDATE apply_audit_logs SET triggered_at = '2023-01-01T00:00:00.5Z' WHERE {one}"));
        assert_eq!(self.audit_rows(block), ("1".to_owned(), true));
    }

    /// How many rows are old, and whether there are others.
    fn audit_rows(&self, block: &Commands) -> (String, bool) {
        let count =
            |condition: &str| self.sql(block, &format!("SELECT count(*) FROM apply_audit_logs WHERE {condition}"));
        (count("triggered_at < '2024-01-01T00:00:00Z'"), count("triggered_at > '2024-01-01T00:00:00Z'") != "0")
    }

    /// Types the block that moves the database, with a row that PostgreSQL refuses; then does what the document says.
    fn cannot_move(&self, block: &Commands) {
        let sqlite = |sql: &str| {
            self.machine.run(&format!("runuser -u pbx-portal -- sqlite3 /var/lib/pbx-portal/portal.db \"{sql}\""))
        };
        let first = "id = (SELECT min(id) FROM users)";
        let created_at = sqlite(&format!("SELECT created_at FROM users WHERE {first}"));
        sqlite(&format!("UPDATE users SET created_at = 'not a time' WHERE {first}"));
        assert!(!self.machine.try_run(&format!("cd /root\n{}", block.text)).status.success());
        let state = self.machine.try_run("systemctl is-active pbx-portal").stdout;
        assert_eq!(String::from_utf8_lossy(&state).trim(), "inactive", "it must not serve a part of the users");
        sqlite(&format!("UPDATE users SET created_at = '{created_at}' WHERE {first}"));
        self.machine.run(
            "sed -i '/^DATABASE_URL=/d' /etc/pbx-portal/pbx-portal.env; systemctl start pbx-portal
            cd / && runuser -u postgres -- psql --quiet --command='DROP DATABASE portal' --command='DROP ROLE portal'",
        );
    }

    fn version(&self) -> String {
        self.machine.run("dpkg-query --show --showformat='${Version}' pbx-portal")
    }

    fn checks(&self) -> String {
        self.machine.run("cd /etc/pbx-portal && runuser -u pbx-portal -- pbx-portal check")
    }
}

#[test]
fn every_command_of_the_documents_works_as_written() {
    let machine = Machine::boot();
    let [former, next] = ["0.1.0-1", "0.2.0-1"].map(|version| package(&machine, version));
    machine.run(&format!(
        "mkdir -p /root/target/debian /root/former; cp {former} /root/former; mv {former} /root/target/debian"
    ));
    machine.run(&format!("mkdir /root/next; mv {next} /root/next"));
    // What a server has before the portal comes.
    machine.run(
        "printf '[transport-udp]\ntype = transport\nprotocol = udp\nbind = 127.0.0.1:5060\n' >>/etc/asterisk/pjsip.conf",
    );
    let portal = Portal::prepare(&Settings::default().with("PORTAL_LISTEN", "127.0.0.1:8000"));
    let mut server = Server { machine, portal };

    let readme = commands("README.md");
    for block in readme.iter().filter(|block| block.heading == "Install on a server") {
        server.types(block);
    }
    let tour: Vec<_> = readme.iter().filter(|block| block.language == "console").collect();
    assert_eq!(tour.len(), 3, "create, apply, an apply that fails");
    asks(&server, tour[0]);
    asks(&server, tour[1]);
    server
        .machine
        .run("cp --preserve=all /etc/asterisk/pjsip.conf /root; sed -i '/#tryinclude/d' /etc/asterisk/pjsip.conf");
    asks(&server, tour[2]);
    server.machine.run("cp --preserve=all /root/pjsip.conf /etc/asterisk");
    server.applies();
    let known = ["See it work", "Install on a server", "A minute's tour"];
    assert!(readme.iter().all(|block| known.contains(&block.heading.as_str())), "nothing is left out");
    let make_only = readme.iter().filter(|block| block.heading == "See it work");
    assert!(make_only.flat_map(|block| block.text.lines()).all(|line| line.starts_with("make ")));

    let mut kept = server.users();
    for block in commands("docs/operations.md").iter().filter(|block| block.heading != from_source::HEADING) {
        let heading = block.heading.as_str();
        match heading {
            "Upgrade" => _ = server.machine.run("cp /root/next/*.deb /root"),
            "Back up SQLite" | "Back up PostgreSQL" => kept = server.users(),
            "Restore SQLite" | "Restore PostgreSQL" => server.changes_hands(),
            "Move from SQLite to PostgreSQL" => server.cannot_move(block),
            "Prune the audit log" => server.ages_an_audit_row(block),
            _ => {}
        }
        let printed = server.types(block);
        match heading {
            "Check that all is well" if block.text.contains("check") => {
                assert!(printed.contains("An apply has what it needs."), "{printed}");
            }
            "Check that all is well" => assert!(printed.contains("apply proven"), "{printed}"),
            "Upgrade" => {
                assert_eq!(server.version(), "0.2.0-1");
                assert_eq!(server.users(), kept);
            }
            "Roll back" => {
                assert_eq!(server.version(), "0.1.0-1");
                assert_eq!(server.users(), kept);
            }
            "Back up SQLite" => {
                assert_eq!(server.machine.run("stat -c %a /root/pbx-portal-backup.db"), "600");
            }
            "Restore SQLite" | "Restore PostgreSQL" => {
                assert_eq!(server.users(), kept);
                let checks = server.checks();
                assert!(checks.contains("would change what Asterisk serves") && checks.contains(": 1000"), "{checks}");
                server.applies();
            }
            "Move from SQLite to PostgreSQL" => {
                assert_eq!(server.users(), kept);
                let table = server.checks();
                assert!(table.contains("database postgres://portal@127.0.0.1:5432/portal"), "{table}");
                assert!(table.contains("changes nothing"), "{table}");
            }
            "Set or rotate the token" => {
                let refused = server.machine.inside(|| server.portal.request("GET", "/users", None));
                assert_eq!(refused.status, 401);
                server.log_in();
                assert_eq!(server.users(), kept);
                assert_eq!(
                    server.machine.run("stat -c '%U:%G %a' /etc/pbx-portal/pbx-portal.env"),
                    "root:pbx-portal 640"
                );
            }
            "Rename a host" => _ = server.applies(),
            "Who applied, and with what result" if block.text.contains("postgres") => {
                assert!(printed.contains("pbx-berlin") && printed.contains("does not include"), "{printed}");
            }
            "Who applied, and with what result" => assert!(printed.contains("success"), "{printed}"),
            "Prune the audit log" => assert_eq!(server.audit_rows(block), ("0".to_owned(), true), "the old row alone"),
            "Back up Asterisk's own database" => {
                let rows = "sqlite3 /root/astdb.sqlite3 'SELECT count(*) > 0 FROM astdb'";
                assert_eq!(server.machine.run(rows), "1");
                let failed = "grep --count 'database is locked' /var/log/asterisk/messages.log || true";
                assert_eq!(server.machine.run(failed), "0");
            }
            "A phone does not register" => {
                assert!(block.text.contains("logger") || printed.contains("1000/1000"), "{printed}");
            }
            "Back up PostgreSQL" => _ = server.machine.run("test -s /var/lib/postgresql/portal.dump"),
            "Remove" => {
                let endpoints = "/etc/asterisk/pjsip.d/synergycall/generated_endpoints.conf";
                let left = server.machine.run(&format!("grep -c '^\\[1000\\]' {endpoints} || true"));
                assert_eq!(left, if block.text.contains("purge") { "0" } else { "3" });
            }
            other => panic!("{other}: what comes of its commands is not looked at"),
        }
    }
}

/// Types a `curl` of the tour, and compares the names in its answer with those shown.
fn asks(server: &Server, block: &Commands) {
    let (command, shown) = block.text.trim_start_matches("$ ").split_once('\n').expect("an answer");
    let output = server.machine.inside(|| run_within(secs(60), Command::new("sh").args(["-ec", command])));
    let answer = String::from_utf8(output.stdout).expect("UTF-8");
    let names = |text: &str| -> BTreeSet<String> {
        let without_what_asterisk_printed =
            Regex::new(r#""(command|exit_code|stdout|stderr|pjsip_reload|dialplan_reload)":"#).expect("a regex");
        let text = without_what_asterisk_printed.replace_all(text, "");
        Regex::new(r#""([a-z_]+)":"#).expect("a regex").captures_iter(&text).map(|name| name[1].to_owned()).collect()
    };
    assert_eq!(names(&answer), names(shown), "{command}: {answer}");
    let details = "does not include the generated file; add the line";
    assert_eq!(answer.contains(details), shown.contains(details), "{answer}");
}

#[test]
fn operations_md_explains_log_lines_and_errors_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut source = String::new();
    let mut folders = vec![root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("list").map(|entry| entry.expect("list").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                source += &fs::read_to_string(entry).expect("a source file");
            }
        }
    }
    let operations = fs::read_to_string(root.join("docs/operations.md")).expect("the document");
    let section = |title: &str| operations.split("## ").find(|text| text.starts_with(title)).expect(title);
    let quoted = Regex::new("`([^`]+)`").expect("a regex");
    let first_cells =
        section("What a log line means").lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let mut count = 0;
    for cell in first_cells {
        for line in quoted.captures_iter(&format!("`{cell}")) {
            let text = line[1].trim_end_matches(", …");
            assert!(source.contains(text), "no line of the log says {text:?}");
            count += 1;
        }
    }
    assert!(count >= 12, "only {count} lines: is the table read at all?");

    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
    let phrases = document["components"]["schemas"]["Phrase"]["enum"].as_array().expect("phrases").clone();
    let told = section("What an error means");
    for phrase in phrases {
        assert!(told.contains(&format!("`{}`", phrase.as_str().expect("a phrase"))), "{phrase} is not explained");
    }
}
