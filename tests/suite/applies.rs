//! An apply that is believed, and one that is not.

use std::fs::{self, File};

use serde_json::{Value, json};

use crate::fixtures::{
    Database, Reader, TWO_OF_ONE_NAME, account, failed_apply, host, host_with_script, id, left_overs, psql, script,
    serves, sql, sqlite, try_apply,
};
use crate::scenes::{Scene, apply_meanwhile};
use support::lab::Folder;
use support::portal::Settings;
use support::process::Signal;
use support::{Asterisk, Portal, Postgres, asterisk, secs, wait_until};

#[test]
fn an_apply_leaves_a_true_audit_row_on_both_databases() {
    let asterisk = Asterisk::start();
    for database in [Database::Sqlite, Database::Postgres] {
        let (_folder, url) = database.shared();
        let portal = Portal::start(&Settings::of(&asterisk).with("PORTAL_HOST", "pbx-7").with("DATABASE_URL", &url));
        let sql = |statement: &str| sql(&url, statement);
        let applied = portal.apply("  Áine  ");
        let audit_id = applied["audit_log_id"].as_str().expect("an id");
        let row = |column: &str| sql(&format!("SELECT {column} FROM apply_audit_logs WHERE id = '{audit_id}'"));
        assert_eq!(
            row("triggered_by || '/' || host || '/' || outcome || '/' || coalesce(error_details, 'none')"),
            "Áine/pbx-7/success/none"
        );
        let json = |column: &str| serde_json::from_str::<Value>(&row(column)).expect("JSON");
        assert_eq!(json("files_written"), json!([asterisk.endpoints_file(), asterisk.routing_file()]));
        assert_eq!(json("reload_results"), applied["reload_results"]);

        asterisk.stop();
        let answer = failed_apply(&portal, &["Asterisk is not running"]);
        asterisk.boot();
        let failure = format!(
            "SELECT count(*) FROM apply_audit_logs WHERE id = '{}' AND outcome = 'failure'",
            answer["audit_log_id"].as_str().expect("an id")
        );
        assert_eq!(sql(&format!("{failure} AND error_details LIKE 'Asterisk is not running%'")), "1");
        assert_eq!(sql("SELECT count(*) FROM apply_audit_logs"), "2");
    }
}

#[test]
fn an_apply_without_asterisk_says_so_and_a_later_one_repairs() {
    let (asterisk, portal) = host();
    let (number, _) = account(&portal.create_user("Alice", "alice@example.com"));
    asterisk.stop();
    let answer = failed_apply(&portal, &["Asterisk is not running", "systemctl start asterisk"]);
    assert_eq!(answer["files_written"], json!([]));
    asterisk.boot();
    assert!(!serves(&asterisk, &number));
    portal.apply("suite");
    assert!(serves(&asterisk, &number));
}

#[test]
fn a_second_apply_on_a_host_is_refused_while_one_runs() {
    let (asterisk, portal) = host();
    portal.apply("suite");
    let lock = asterisk.endpoints_file().with_file_name(".pbx-portal.lock");
    assert_eq!(fs::metadata(&lock).expect("the lock file").len(), 0);
    let held = File::open(&lock).expect("open the lock file");
    held.lock().expect("lock it");
    let answer = try_apply(&portal);
    assert_eq!((answer.status, answer.json["error"].as_str()), (409, Some("Apply in progress")));
    assert_eq!(sqlite(&portal, "SELECT count(*) FROM apply_audit_logs"), "1", "no row for the refused one");
    drop(held);
    portal.apply("suite");
}

#[test]
fn an_apply_without_the_include_lines_names_the_line_to_add() {
    let asterisk = Asterisk::start_with(&asterisk::Options { without_includes: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    let endpoints = "#tryinclude pjsip.d/synergycall/generated_endpoints.conf";
    failed_apply(&portal, &["context synergy-internal missing"]);
    portal.create_user("Alice", "alice@example.com");
    failed_apply(&portal, &["endpoints missing: 1000", "pjsip.conf", endpoints]);
    asterisk.edit_config("pjsip.conf", |text| format!("{text}\n{endpoints}\n"));
    let routing = "#tryinclude extensions.d/synergycall/generated_routing.conf";
    failed_apply(&portal, &["context synergy-internal missing", "extensions.conf", routing]);
    asterisk.edit_config("extensions.conf", |text| format!("{text}\n{routing}\n"));
    portal.apply("suite");
}

#[test]
fn an_apply_of_no_users_looks_for_both_include_lines() {
    let (asterisk, portal) = host();
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(0));
    asterisk.edit_config("pjsip.conf", |text| text.replace("#tryinclude", ";"));
    failed_apply(&portal, &["pjsip.conf does not include"]);
}

#[test]
fn an_apply_of_an_emptied_database_warns_that_no_former_user_is_left() {
    let (asterisk, portal) = host();
    let message = |answer: &Value| answer["message"].as_str().expect("a message").to_owned();
    let create = |names: &[&str]| {
        for name in names {
            portal.create_user(name, &format!("{name}@example.com"));
        }
    };
    create(&["alice", "bob", "carol"]);
    assert!(!message(&portal.apply("suite")).contains("Warning"), "nobody was served before");
    portal.delete_user(id(&portal.users()[0]));
    assert!(!message(&portal.apply("suite")).contains("Warning"), "two stay");

    let warning = "none of the 2 users whom Asterisk served before is in the database any more";
    for newcomers in [[].as_slice(), &["dave", "erin"]] {
        sqlite(&portal, "PRAGMA foreign_keys = ON; DELETE FROM extensions; DELETE FROM users");
        create(newcomers);
        let logged = portal.log().len();
        let answer = portal.apply("suite");
        assert_eq!(answer["users_applied"].as_u64(), u64::try_from(newcomers.len()).ok());
        assert!(message(&answer).contains(warning), "{answer}");
        let log = portal.log();
        assert!(log[logged..].lines().any(|line| line.contains(" WARN ") && line.contains(warning)), "{log}");
        assert_eq!(asterisk.endpoints().len(), newcomers.len(), "it is applied all the same");
        create(&["frank", "grace"][newcomers.len()..]);
        portal.apply("suite");
    }
}

#[test]
fn an_apply_after_one_that_left_all_numbers_to_nobody_warns_of_nobody() {
    let fails = "case \"$2\" in pjsip*) test -e \"$here/fails\" && exit 1;; esac\nexec $asterisk \"$@\"\n";
    let (_asterisk, portal, folder) = host_with_script(fails);
    let former = ["alice", "bob"].map(|name| portal.create_user(name, &format!("{name}@example.com")));
    portal.apply("suite");
    for user in &former {
        portal.delete_user(id(user));
    }
    for name in ["carol", "dave"] {
        portal.create_user(name, &format!("{name}@example.com"));
    }
    fs::write(folder.path().join("fails"), "").expect("make it fail");
    let warning = ". Warning: none of the 2 users whom Asterisk served before is in the database any more";
    failed_apply(&portal, &["pjsip reload", "ended with exit status: 1", warning]);
    let row = sqlite(&portal, "SELECT error_details FROM apply_audit_logs WHERE outcome = 'failure'");
    assert!(row.contains(warning), "{row}");
    fs::remove_file(folder.path().join("fails")).expect("mend it");
    let applied = portal.apply("suite");
    assert!(!applied["message"].as_str().expect("a message").contains("Warning"), "{applied}");
}

#[test]
fn an_apply_without_cli_aliases_reloads_the_modules_themselves() {
    let asterisk =
        Asterisk::start_with(&asterisk::Options { without_cli_aliases: true, ..asterisk::Options::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    portal.create_user("Alice", "alice@example.com");
    let applied = portal.apply("suite");
    let command = applied["reload_results"]["pjsip_reload"]["command"].as_str().expect("a command");
    assert!(command.contains("module reload res_pjsip.so "), "{command}");
}

#[test]
fn an_apply_compares_values_not_only_names() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    // A secret edited by hand and loaded, then two sections of one name that make Asterisk keep it.
    let text = fs::read_to_string(asterisk.endpoints_file()).expect("the endpoints");
    let edited: String = text
        .lines()
        .map(|line| if line.starts_with("password=") { "password=stolen\n".into() } else { format!("{line}\n") })
        .collect();
    fs::write(asterisk.endpoints_file(), edited).expect("edit the endpoints");
    asterisk.rx("pjsip reload");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{TWO_OF_ONE_NAME}"));
    failed_apply(
        &portal,
        &["the endpoint, auth or AOR of their former owners: 1000", "[alice] of type=auth", "pjsip.conf:"],
    );
    asterisk.edit_config("pjsip.conf", |text| text.replace(TWO_OF_ONE_NAME, ""));
    portal.create_user("Bob", "bob@example.com");
    portal.apply("suite");
    // Likewise if only one of two users changes its caller ID.
    let text = fs::read_to_string(asterisk.endpoints_file()).expect("the endpoints");
    fs::write(asterisk.endpoints_file(), text.replace("\"Alice\"", "\"Mallory\"")).expect("edit the endpoints");
    asterisk.rx("pjsip reload");
    let twice =
        TWO_OF_ONE_NAME.replace("type=auth\nauth_type=userpass\nusername=alice\npassword=x\n", "type=endpoint\n");
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{twice}"));
    failed_apply(
        &portal,
        &["serve what the database holds: endpoints with another callerid: 1000; likely", "type=endpoint"],
    );
    asterisk.edit_config("pjsip.conf", |text| text.replace(&twice, ""));
    portal.apply("suite");
}

#[test]
fn what_asterisk_has_left_over_is_named() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    // In force, but in no file any more, and Asterisk keeps it because it refuses what it is given instead.
    let orphans = "[1900]\ntype=auth\nauth_type=userpass\nusername=bob\npassword=x\n[1901]\ntype=aor\n";
    asterisk.edit_config("pjsip.conf", |text| format!("{text}{orphans}"));
    asterisk.rx("pjsip reload");
    let refused = format!("{TWO_OF_ONE_NAME}[alice]\ntype=aor\n[alice]\ntype=aor\n");
    asterisk.edit_config("pjsip.conf", |text| text.replace(orphans, &refused));
    failed_apply(&portal, &["auths left over: 1900; AORs left over: 1901; likely cause", "[alice] of type="]);
    asterisk.edit_config("pjsip.conf", |text| text.replace(&refused, ""));
    portal.apply("suite");
}

#[test]
fn objects_that_asterisk_lacks_are_not_asked_for() {
    let asterisk = Asterisk::start_with(&asterisk::Options { without_includes: true, ..Default::default() });
    let portal = Portal::start(&Settings::of(&asterisk));
    portal.create_user("Alice", "alice@example.com");
    failed_apply(&portal, &["endpoints missing: 1000; auths missing: 1000; AORs missing: 1000; the dialplan context"]);
    assert!(!asterisk.log().contains("information for endpoint"), "{}", asterisk.log());
}

#[test]
fn a_hung_asterisk_is_given_up() {
    let asterisk = Asterisk::start();
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_TIMEOUT_SECS", 1));
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    portal.create_user("Bob", "bob@example.com");
    let files = [asterisk.endpoints_file(), asterisk.routing_file()];
    let bytes = || files.each_ref().map(|file| fs::read(file).expect("a generated file"));
    let before = bytes();
    asterisk.signal(Signal::STOP);
    let answer = failed_apply(&portal, &["Asterisk did not answer '(its greeting)' within 1 s"]);
    asterisk.signal(Signal::CONT);
    assert_eq!(answer["files_written"], json!([]), "{answer}");
    assert_eq!(answer["reload_results"], json!({"pjsip_reload": null, "dialplan_reload": null}));
    assert_eq!((bytes(), left_overs(&asterisk)), (before, Vec::new()), "nothing is touched");
    assert!(!serves(&asterisk, "1001"), "nothing is touched");
    portal.apply("suite");
}

#[test]
fn an_asterisk_that_is_too_slow_is_given_up() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    // Each command takes almost as long as it may, and each reload is dropped once.
    let slow = "test -e \"$here/slow\" || exec $asterisk \"$@\"
sleep 1.6
case \"$2\" in *reload*)
    test -e \"$here/again $2\" || { touch \"$here/again $2\"; echo 'already in progress'; exit 0; };;
esac
exec $asterisk \"$@\"
";
    let program = script(&asterisk, &folder, slow);
    let stage = Scene::at(asterisk).with("ASTERISK_BIN", program.display()).with("ASTERISK_TIMEOUT_SECS", 2);
    let mut scene = stage.begin();
    scene.hand_over();
    fs::write(folder.path().join("slow"), "").expect("make it slow");
    // And a reader of Asterisk's database takes the time that is left before giving.
    let reader = Reader::start(&scene.asterisk, 1, 60.0, 0.0);
    failed_apply(&scene.portal, &["Asterisk is too slow", "given up after 10 s"]);
    drop(reader);
    fs::remove_file(folder.path().join("slow")).expect("make it fast again");
    scene.portal.apply("suite");
}

#[test]
fn a_last_audit_write_that_fails_is_reported_and_retried() {
    let asterisk = Asterisk::start();
    let cluster = Postgres::start(&support::postgres::Options::default());
    let url = cluster.new_database();
    let portal = Portal::start(&Settings::of(&asterisk).with("DATABASE_URL", &url));
    let user = portal.create_user("Alice", "alice@example.com");
    let (answer, ()) = apply_meanwhile(&asterisk, &portal, || cluster.stop());
    let message = answer.json["message"].as_str().unwrap_or_default();
    assert!(answer.status == 500 && message.contains("Asterisk serves the new state"), "{}", answer.text);
    assert!(serves(&asterisk, &account(&user).0));
    let refused = try_apply(&portal);
    assert_eq!((refused.status, refused.json["error"].as_str()), (503, Some("Database unavailable")));
    cluster.boot();
    wait_until(secs(20), "the row is completed", || psql(&url, "SELECT outcome FROM apply_audit_logs") == "success");
    portal.delete_user(id(&user));
    portal.apply("suite");
}
