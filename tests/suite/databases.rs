//! PostgreSQL and SQLite: migrations over rows, growth, and TLS.

use crate::fixtures::{psql, sqlite_file, without_asterisk};
use support::portal::run;
use support::postgres::Options;
use support::{Portal, Postgres, secs, wait_until};

#[test]
fn migrations_run_twice_and_from_two_processes_at_once_and_keep_rows() {
    let folder = support::lab::Folder::new("migrations");
    let support::lab::User(owner) = support::lab::PORTAL;
    let data = folder.path().join("data");
    support::lab::make_dir(&data, owner, owner, 0o700);
    let file = data.join("a portal.db");
    let postgres = Postgres::database();
    for url in [postgres.clone(), format!("sqlite://{}/a%20portal.db?mode=rwc", data.display())] {
        let settings = without_asterisk().with("DATABASE_URL", &url);
        std::thread::scope(|scope| {
            let migrating: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&["migrate"], &settings))).collect();
            for output in migrating.into_iter().map(|thread| thread.join().expect("an end")) {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        });
        let created = Portal::start(&settings).create_user("Alice", "alice@example.com");
        assert!(run(&["migrate"], &settings).status.success());
        assert_eq!(Portal::start(&settings).users(), [created]);
    }
    let tables = "apply_audit_logs extensions tenants users";
    let list = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '\\_%'";
    assert_eq!(psql(&postgres, list), tables);
    let list = "SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\' ORDER BY name)";
    assert_eq!(sqlite_file(&file, list), tables);
    let tenant = "SELECT id || ' ' || name FROM tenants";
    for found in [psql(&postgres, tenant), sqlite_file(&file, tenant)] {
        assert_eq!(found, "a0000000-0000-0000-0000-000000000000 Default");
    }
}

#[test]
fn a_schema_of_a_newer_release_is_used_and_of_a_newer_major_version_refused() {
    let folder = support::lab::Folder::new("schema");
    let support::lab::User(owner) = support::lab::PORTAL;
    support::lab::make_dir(&folder.path().join("data"), owner, owner, 0o700);
    let file = folder.path().join("data/portal.db");
    let postgres = Postgres::database();
    let newer = |version: u16| {
        format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES ({version}, 'newer', true, '', 0)"
        )
    };
    for (url, sql) in [
        (format!("sqlite://{}", file.display()), &|sql: &str| sqlite_file(&file, sql) as _),
        (postgres.clone(), &|sql: &str| psql(&postgres, sql) as _),
    ] as [(String, &dyn Fn(&str) -> String); 2]
    {
        let settings = without_asterisk().with("DATABASE_URL", &url);
        assert!(run(&["migrate"], &settings).status.success());
        sql("UPDATE _sqlx_migrations SET checksum = substr(checksum, 2) WHERE version = 1001");
        let refused = run(&["migrate"], &settings);
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && stderr.contains("migration 1001"), "{stderr}");
        sql(
            "DELETE FROM _sqlx_migrations; DROP TABLE apply_audit_logs; DROP TABLE extensions; DROP TABLE users; DROP TABLE tenants",
        );
        assert!(run(&["migrate"], &settings).status.success());
        sql(&newer(1999));
        Portal::start(&settings).create_user("Alice", "alice@example.com");
        sql(&newer(2001));
        for command in ["migrate", "serve"] {
            let refused = run(&[command], &settings);
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert!(refused.status.code() == Some(1) && stderr.contains("major version 2"), "{stderr}");
        }
    }
}

#[test]
fn postgres_does_not_list_a_thousand_users_by_the_plan_for_one() {
    let url = Postgres::database();
    let portal = Portal::start(&without_asterisk().with("DATABASE_URL", &url));
    portal.create_user("Alice", "alice@example.com");
    for table in ["users", "extensions"] {
        psql(&url, &format!("ALTER TABLE {table} SET (autovacuum_enabled = false)"));
        psql(&url, &format!("ANALYZE {table}"));
    }
    // Planned for one.
    portal.users();
    psql(
        &url,
        "WITH more AS (INSERT INTO users SELECT gen_random_uuid(), tenant_id, name, n || email, created_at FROM users, generate_series(1001, 1999) AS n RETURNING id) \
         INSERT INTO extensions SELECT gen_random_uuid(), 1000 + row_number() OVER (), more.id, secret, created_at FROM more, extensions",
    );
    let read = || {
        let rows =
            psql(&url, "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('users', 'extensions')");
        rows.parse::<usize>().expect("a count")
    };
    let before = read();
    assert_eq!(portal.users().len(), 1000);
    // Counted when its connection ends.
    drop(portal);
    wait_until(secs(20), "what was read is counted", || read() >= before + 1000);
    assert!(read() < before + 100_000, "each user is looked for among all");
}

#[test]
fn a_postgres_over_tls_is_verified() {
    let cluster = Postgres::start(&Options {
        tls: true,
        hba: "hostssl all portal all scram-sha-256\nhostnossl all portal all reject\n".into(),
        ..Options::default()
    });
    let url = cluster.new_database();
    let ca = cluster.ca_file();
    let with = |parameters: &str| without_asterisk().with("DATABASE_URL", format!("{url}?{parameters}"));
    let portal = Portal::start(&with(&format!("sslmode=verify-full&sslrootcert={}", ca.display())));
    portal.create_user("Alice", "alice@example.com");
    assert_eq!(
        cluster
            .admin("SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'portal'")
            .trim(),
        "t"
    );
    drop(portal);
    let stranger = Postgres::start(&Options { tls: true, ..Options::default() });
    let by_stranger = format!("sslmode=verify-full&sslrootcert={}", stranger.ca_file().display());
    for parameters in [by_stranger.as_str(), "sslmode=disable", "sslmode=verify-full&sslrootcert=/nowhere.pem"] {
        let refused = run(&["migrate"], &with(parameters));
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), stderr.lines().count()), (Some(1), 1), "{parameters}: {stderr}");
        assert!(stderr.contains("the database can't be used") && !stderr.contains("portal:portal"), "{stderr}");
    }
}
