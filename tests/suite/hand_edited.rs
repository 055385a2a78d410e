//! Rows that were edited by hand: the list, an apply and `check` say which user's which column is wrong, and how to mend it.

use serde_json::Value;

use crate::fixtures::{Database, failed_apply, id, sql};
use support::portal::{Settings, run};
use support::{Asterisk, Portal};

#[test]
fn rows_edited_by_hand_are_named_on_sqlite() {
    edited(Database::Sqlite);
}

#[test]
fn rows_edited_by_hand_are_named_on_postgres() {
    edited(Database::Postgres);
}

fn edited(database: Database) {
    let asterisk = Asterisk::start();
    let (_folder, url) = database.shared();
    let settings = Settings::of(&asterisk).with("DATABASE_URL", &url);
    let portal = Portal::start(&settings);
    let sql = |statement: &str| sql(&url, statement);
    let bob = portal.create_user("Bob", "bob@example.com");
    let long = "x".repeat(300);
    for (column, table, value) in [
        ("name", "users", "two\nlines"),
        ("name", "users", long.as_str()),
        ("name", "users", ""),
        ("email", "users", "älice@example.com"),
        ("secret", "extensions", "half;a=comment"),
    ] {
        let alice = portal.create_user("Alice", "alice@example.com");
        let key = if table == "users" { "id" } else { "user_id" };
        sql(&format!("UPDATE {table} SET {column} = '{value}' WHERE {key} = '{}'", id(&alice)));
        let line = format!("{column} of user {} in table {table} was edited by hand", id(&alice));
        named(&portal, &settings, &line, &format!("UPDATE {table} SET {column} = '…' WHERE {key} = '{}'", id(&alice)));
        let deleted = portal.delete_user(id(&alice));
        assert_eq!(deleted["freed_extension"].as_u64(), Some(1001), "such a user can be deleted");
        assert_eq!(portal.users(), std::slice::from_ref(&bob));
    }

    let alice = portal.create_user("Alice", "alice@example.com");
    sql(&format!("DELETE FROM extensions WHERE user_id = '{}'", id(&alice)));
    named(&portal, &settings, &format!("user {} has no extension", id(&alice)), "DELETE /users/");
    let deleted = portal.delete_user(id(&alice));
    assert_eq!(deleted["freed_extension"], Value::Null, "{deleted}");
    assert_eq!(portal.request("DELETE", &format!("/users/{}", id(&alice)), None).status, 404, "it is gone");
    assert_eq!(portal.apply("suite")["users_applied"].as_u64(), Some(1));

    // The sqlite3 shell does not enforce foreign keys.
    if database == Database::Sqlite {
        let alice = portal.create_user("Alice", "alice@example.com");
        sql(&format!("DELETE FROM users WHERE id = '{}'", id(&alice)));
        let free = "DELETE FROM extensions WHERE number = 1001";
        named(&portal, &settings, "extension 1001 belongs to no user", free);
        sql(free);
        assert_eq!(portal.users(), std::slice::from_ref(&bob));
        let alice = portal.create_user("Alice", "alice@example.com");
        sql(&format!("UPDATE users SET id = 'alice' WHERE id = '{}'", id(&alice)));
        let remove = "DELETE FROM extensions WHERE user_id = 'alice'; DELETE FROM users WHERE id = 'alice'";
        named(&portal, &settings, "id of a user in table users was edited by hand", remove);
        sql(remove);
        named(&portal, &settings, "extension 1001 belongs to no user", free);
        sql(free);
        sql(&format!("UPDATE users SET created_at = '2026-11-21T02:00:00+02:00' WHERE id = '{}'", id(&bob)));
        assert_eq!(portal.users()[0]["created_at"], "2026-11-21T00:00:00Z", "UTC");
        for invalid in ["yesterday", "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00"] {
            sql(&format!("UPDATE users SET created_at = '{invalid}' WHERE id = '{}'", id(&bob)));
            named(&portal, &settings, &format!("created_at of user {}", id(&bob)), "UPDATE users SET created_at");
        }
    }
}

/// The list, an apply and `check` all name it.
#[track_caller]
fn named(portal: &Portal, settings: &Settings, line: &str, mend: &str) {
    let listed = portal.request("GET", "/users", None);
    let message = listed.json["message"].as_str().unwrap_or_default();
    assert_eq!((listed.status, listed.json["error"].as_str()), (500, Some("Internal server error")), "{}", listed.text);
    assert!(message.contains(line) && message.contains(mend), "{line:?}, {mend:?} in {message}");
    failed_apply(portal, &[line, mend]);
    let checked = run(&["check", "--json"], settings);
    let report: Value = serde_json::from_slice(&checked.stdout).expect("a report");
    assert_eq!((checked.status.code(), report["ok"].as_bool()), (Some(1), Some(false)), "{report}");
    let finding = report["findings"].as_array().and_then(|all| all.iter().find(|one| one["what"] == "the database"));
    let finding = finding.expect("a line about the database");
    assert_eq!(finding["state"].as_str(), Some("failure"), "{report}");
    let text = format!("{}; {}", finding["found"], finding["mend"]);
    assert!(text.contains(line) && text.contains(mend), "{line:?}, {mend:?} in {text}");
}
