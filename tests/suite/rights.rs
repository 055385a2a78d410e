//! What a role, a schema, a database or an encoding lacks is named, with the SQL that mends it: at start and in `check`.

use serde_json::Value;

use crate::fixtures::{unavailable, without_asterisk};
use support::pooler::database_of;
use support::portal::run;
use support::postgres::{self, Options, psql};
use support::{Portal, Postgres};

/// A start and `check` say these words about the database; gives the SQL after `run: `.
#[track_caller]
fn refused(url: &str, words: &[&str]) -> String {
    let settings = without_asterisk().with("DATABASE_URL", url);
    let started = run(&["serve"], &settings);
    let stderr = String::from_utf8_lossy(&started.stderr).into_owned();
    assert_eq!((started.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    let checked = run(&["check", "--json"], &settings);
    let report: Value = serde_json::from_slice(&checked.stdout).expect("a report");
    let line = report["findings"].as_array().and_then(|all| all.iter().find(|one| one["what"] == "the database"));
    let line = line.expect("a line about the database");
    assert_eq!((checked.status.code(), line["state"].as_str()), (Some(1), Some("failure")), "{report}");
    let checked = format!("{}; {}", line["found"], line["mend"]);
    for word in words {
        assert!(stderr.contains(word), "{word:?} in {stderr}");
        assert!(checked.replace("\\\"", "\"").contains(word), "{word:?} in {checked}");
    }
    assert!(!stderr.contains("at line ") && !checked.contains("at line "), "{stderr} {checked}");
    let sql = stderr.split_once("run: ").map(|(_, sql)| sql.trim_end());
    sql.map(|sql| sql.split("; The ").next().unwrap_or(sql).to_owned()).unwrap_or_default()
}

#[test]
fn each_right_that_is_missing_is_named_with_the_sql_that_grants_it() {
    let cluster = Postgres::start(&Options::default());
    cluster.admin("CREATE DATABASE \"of another\"");
    let database = "of%20another";
    let url = format!("postgres://portal:portal@127.0.0.1:{}/{database}", cluster.port());
    let admin = |sql: &str| cluster.admin_in(database, sql);

    admin("REVOKE CONNECT ON DATABASE \"of another\" FROM public");
    admin(&refused(&url, &["GRANT CONNECT ON DATABASE \"of another\" TO portal"]));
    admin(&refused(&url, &["the role portal may not create tables in the schema public", "GRANT CREATE ON SCHEMA"]));
    admin("ALTER ROLE portal SET search_path = nowhere");
    admin(&refused(&url, &["the role portal has no schema in its search_path", "SET search_path = public"]));
    admin("ALTER ROLE portal SET default_transaction_read_only = on");
    admin(&refused(&url, &["the role portal is read-only", "RESET default_transaction_read_only"]));

    let portal = Portal::start(&without_asterisk().with("DATABASE_URL", &url));
    let alice = portal.create_user("Alice", "alice@example.com");
    admin("ALTER TABLE users OWNER TO postgres");
    unavailable(&portal, &["POST /users"], "pbx-portal check");
    assert!(!portal.log().contains("at line "), "{}", portal.log());
    portal.stop();
    admin(&refused(&url, &["the role portal may not read and write the tables users", "GRANT SELECT, INSERT"]));
    portal.boot();
    assert_eq!(portal.users(), [alice]);
}

#[test]
fn a_missing_database_is_named_with_the_sql_that_makes_it() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    let (server, _) = url.rsplit_once('/').expect("a database");
    let url = format!("{server}/missing");
    cluster.admin(&refused(&url, &["\"missing\" does not exist", "CREATE DATABASE missing OWNER portal"]));
    Portal::start(&without_asterisk().with("DATABASE_URL", &url)).create_user("Alice", "alice@example.com");
}

#[test]
fn an_encoding_that_does_not_hold_every_name_is_refused_by_name() {
    let cluster = Postgres::start(&Options::default());
    let url = cluster.new_database();
    for (encoding, works) in [("LATIN1", false), ("SQL_ASCII", true), ("UTF8", true)] {
        let name = format!("in_{}", encoding.to_lowercase());
        cluster
            .admin(&format!("CREATE DATABASE {name} OWNER portal ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        let url = url.replace(database_of(&url), &name);
        if works {
            let portal = Portal::start(&without_asterisk().with("DATABASE_URL", &url));
            let user = portal.create_user("李 小龍", "lee@example.com");
            assert_eq!(portal.users(), [user]);
        } else {
            refused(&url, &["has the encoding LATIN1", "ENCODING 'UTF8' TEMPLATE template0"]);
            assert_eq!(psql(&url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");
        }
    }
}

#[test]
fn a_standby_is_refused_by_name() {
    let primary = Postgres::start(&Options::default());
    let url = primary.new_database();
    let standby = primary.synchronous_standby();
    let url = url.replace(&primary.port().to_string(), &standby.port().to_string());
    refused(&url, &["a standby, which takes no writes", "the primary, or promote it with SELECT pg_promote()"]);
}

#[test]
fn whether_the_connection_is_encrypted_and_verified_is_logged_and_checked() {
    let plain = Postgres::start(&Options::default());
    let tls = Postgres::start(&Options { tls: true, ..Options::default() });
    let far = Postgres::start(&Options { remote: true, ..postgres::Options::default() });
    let ca = tls.ca_file();
    let verified = format!("{}?sslmode=verify-full&sslrootcert={}", tls.new_database(), ca.display());
    let near = [
        (plain.new_database(), "not encrypted"),
        (tls.new_database(), "encrypted, but the server is not verified"),
        (verified, "encrypted, and the server is verified"),
    ];
    for (url, words) in near {
        let settings = without_asterisk().with("DATABASE_URL", &url);
        let portal = Portal::start(&settings);
        let log = portal.log();
        let line = log.lines().find(|line| line.contains("the database is connected")).expect("a line");
        assert!(line.contains(words) && line.contains(" INFO "), "{line}");
        let checked = String::from_utf8(run(&["check"], &settings).stdout).expect("UTF-8");
        assert!(checked.lines().any(|line| line.starts_with("ok") && line.contains(words)), "{checked}");
    }
    let settings = without_asterisk().with("DATABASE_URL", far.new_database());
    let portal = Portal::start(&settings);
    assert!(portal.log().contains(" WARN the database is connected"), "{}", portal.log());
    let checked = String::from_utf8(run(&["check"], &settings).stdout).expect("UTF-8");
    let warned = checked.lines().any(|line| line.starts_with("WARN") && line.contains("not encrypted"));
    assert!(warned && checked.contains("add sslmode=verify-full to DATABASE_URL"), "{checked}");
}
