//! Settings: an invalid one stops the start with exit status 2 and one line on standard error, which shows no secret.

use crate::support::lab::{BROWSER, User};
use crate::support::portal::{Settings, run};

#[test]
fn an_invalid_setting_stops_the_start() {
    let long = "https://user:hunter2@example.com/x";
    for (name, value, word) in [
        ("PORTAL_LISTEN", "127.0.0.1:99999", "PORTAL_LISTEN"),
        ("PORTAL_LISTEN", "localhost", "PORTAL_LISTEN"),
        ("DATABASE_URL", long, "DATABASE_URL"),
        ("DATABASE_URL", "postgres://portal:hunter2@db:port/x", "DATABASE_URL"),
        ("DATABASE_URL", "postgres://portal:hunter2@db/x?sslmode=maybe", "DATABASE_URL"),
        ("DATABASE_URL", "postgres://portal:hunter2@db/x?sslmod=require", "sslmod"),
        ("DATABASE_URL", "postgres://portal:half?hunter2@db/x", "DATABASE_URL"),
        ("DATABASE_URL", "postgres://portal:hunter2@db/x?connect_timeout=3", "the parameter connect_timeout"),
        ("DATABASE_URL", "postgres://portal:hunter2@db1,db2/x", "takes one address; for several servers put HAProxy"),
        ("DATABASE_URL", "postgres://portal:hunter2@db1:5432,db2:5432/x", "takes one address"),
        ("DATABASE_URL", "postgres://portal:hunter2@/x?host=db1,db2", "takes one address"),
        ("DATABASE_URL", "sqlite://", "DATABASE_URL"),
        ("DATABASE_URL", "sqlite://:memory:", "DATABASE_URL"),
        ("DATABASE_URL", "sqlite://%3Amemory:", "names a file"),
        ("DATABASE_URL", "sqlite://file:/x", "names a file"),
        ("DATABASE_URL", "sqlite:///x?mode=memory", "mode=rwc"),
        ("DATABASE_URL", "sqlite:///x?cache=shared", "mode=rwc"),
        ("DATABASE_URL", "", "DATABASE_URL"),
        ("PORTAL_API_TOKEN", "", "PORTAL_API_TOKEN"),
        ("PORTAL_API_TOKEN", " ", "PORTAL_API_TOKEN"),
        ("PORTAL_API_TOKEN", "hunter2 with spaces", "PORTAL_API_TOKEN"),
        ("PORTAL_API_TOKEN", " hunter2", "PORTAL_API_TOKEN"),
        ("PORTAL_API_TOKEN", "hunter2\n", "PORTAL_API_TOKEN"),
        ("ASTERISK_TIMEOUT_SECS", "0", "ASTERISK_TIMEOUT_SECS"),
        ("ASTERISK_TIMEOUT_SECS", "soon", "ASTERISK_TIMEOUT_SECS"),
        ("PORTAL_ALLOW_UNAUTHENTICATED", "perhaps", "PORTAL_ALLOW_UNAUTHENTICATED"),
        ("PORTAL_LISTEN", "0.0.0.0:0", "PORTAL_API_TOKEN"),
        ("PORTAL_HOST", "two\nlines", "PORTAL_HOST"),
        ("LOG_LEVEL", "loud", "LOG_LEVEL"),
        ("LOG_FORMAT", "xml", "LOG_FORMAT"),
    ] {
        let output = run(&["serve"], &Settings::default().with(name, value));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{name}={value}: {stderr}");
        assert!(stderr.contains(word) && !stderr.contains("hunter2"), "{name}={value}: {stderr}");
    }
}

#[test]
fn an_empty_token_stops_the_start() {
    let everywhere = Settings::default().with("PORTAL_LISTEN", "0.0.0.0:0");
    let portal = crate::support::Portal::prepare(&Settings::default());
    let refused = |settings: &Settings| {
        let mut command = crate::support::portal::portal_command(settings, portal.work_dir());
        let output = crate::support::process::run_within(crate::support::secs(60), command.arg("serve"));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains("PORTAL_API_TOKEN is set but empty"), "{stderr}");
    };
    // Even where no token is needed: an administrator who writes the line wants one.
    for settings in
        [everywhere.clone(), everywhere.clone().with("PORTAL_ALLOW_UNAUTHENTICATED", "true"), Settings::default()]
    {
        refused(&settings.with("PORTAL_API_TOKEN", ""));
    }
    for line in ["PORTAL_API_TOKEN=\n", "PORTAL_API_TOKEN=''\n", "PORTAL_API_TOKEN=   \n"] {
        std::fs::write(portal.work_dir().join(".env"), line).expect("write .env");
        refused(&everywhere);
    }
}

#[test]
fn the_command_line_comes_before_the_environment_and_that_before_the_file() {
    let portal = crate::support::Portal::prepare(&Settings::default());
    let says = |arguments: &[&str], settings: &Settings| {
        let mut command = crate::support::portal::portal_command(settings, portal.work_dir());
        String::from_utf8_lossy(&command.args(arguments).output().expect("run it").stderr).into_owned()
    };
    std::fs::write(portal.work_dir().join(".env"), "PORTAL_LISTEN=from-the-file\nPORTAL_API_TOKEN='not a token'\n")
        .expect("write .env");
    let environment = Settings::default().with("PORTAL_LISTEN", "from-the-environment");
    assert!(says(&["serve", "--listen", "from-the-command-line"], &environment).contains("from-the-command-line"));
    assert!(says(&["serve"], &environment).contains("from-the-environment"));
    assert!(says(&[], &Settings::default()).contains("from-the-file"));
    let refusal = says(&["serve", "--listen", "127.0.0.1:0"], &Settings::default());
    std::fs::write(portal.work_dir().join(".env"), "LOG_LEVEL=info\nPORTAL_API_TOKEN=half$gone\n").expect("write .env");
    let halved = says(&["serve"], &Settings::default());
    assert!(halved.contains("line 2 has a $") && !halved.contains("gone"), "{halved}");
    assert!(refusal.contains("PORTAL_API_TOKEN") && !refusal.contains("not a token"), "{refusal}");
    std::fs::write(portal.work_dir().join(".env"), "PORTAL_API_TOKEN=half\0gone\n").expect("write .env");
    assert_eq!(says(&["serve"], &Settings::default()), "pbx-portal: .env can't be used: it contains a NUL character\n");
    // Root's own is read, as above; anybody else's could name any program.
    let User(stranger) = BROWSER;
    std::os::unix::fs::chown(portal.work_dir().join(".env"), Some(stranger), None).expect("chown .env");
    let strangers = says(&["check"], &Settings::default());
    assert!(strangers.contains(&format!("it belongs to the user {stranger}")), "{strangers}");
}

#[test]
fn no_secret_is_a_flag() {
    let help = run(&["serve", "--help"], &Settings::default());
    let help = String::from_utf8_lossy(&help.stdout);
    assert!(help.contains("--listen") && help.contains("ASTERISK_TIMEOUT_SECS"), "{help}");
    assert!(!help.contains("--database-url") && !help.contains("--api-token"), "{help}");
}
