//! Settings: an invalid one stops the start with exit status 2 and one line on standard error, which shows no secret.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::Command;

use serde_json::Value;

use crate::fixtures::without_asterisk;
use support::lab::{BROWSER, PORTAL, Ports, User};
use support::portal::{Settings, portal_command, run};
use support::process::run_within;
use support::{Portal, secs};

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
        // A password, of which no part is shown.
        ("DATABASE_URL", "postgres://portal:half?hunter2@db/x", "must be percent-encoded, as %23, %2F"),
        ("DATABASE_URL", "postgres://portal:half/hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:half#hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:12/hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:12?hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:12#hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:a@b/hunter2@db/x", "must be percent-encoded"),
        ("DATABASE_URL", "postgres://portal:12?a=hunter2&sslmode=b@db/x", "must be percent-encoded"),
        (
            "DATABASE_URL",
            "postgres://portal:hunter2@db/x?sslmode=require&channel_binding=require&connect_timeout=3&sslcrl=/hunter2&keepalives=1",
            "does not know: channel_binding, connect_timeout, sslcrl, keepalives; remove those for time limits, keepalives, poolers \
             or the choice of a server, which it does not need; replace those that protect the connection, as channel_binding by \
             sslmode=verify-full; it knows sslmode, sslrootcert, sslcert, sslkey, host, hostaddr, port, dbname, user, password, \
             application_name, options",
        ),
        (
            "DATABASE_URL",
            "postgres://portal:hunter2@db/x?target_session_attrs=read-write&gssencmode=disable",
            "does not know: target_session_attrs, gssencmode; remove",
        ),
        ("DATABASE_URL", "postgres://portal:hunter2@db/x?gssencmode=require", "does not know: gssencmode; remove"),
        ("DATABASE_URL", "postgres://portal:hunter2@db/x\n", "a blank at an end, or a line end"),
        ("DATABASE_URL", " postgres://portal:hunter2@db/x", "a blank at an end"),
        ("DATABASE_URL", "postgres://portal:hunter2@db1,db2/x", "takes one address; for several servers put HAProxy"),
        ("DATABASE_URL", "postgres://portal:hunter2@db1:5432,db2:5432/x", "takes one address"),
        ("DATABASE_URL", "postgres://portal:hunter2@/x?host=db1,db2", "takes one address"),
        ("DATABASE_URL", "sqlite://", "DATABASE_URL"),
        ("DATABASE_URL", "sqlite://:memory:", "DATABASE_URL"),
        ("DATABASE_URL", "sqlite://%3Amemory:", "names a file"),
        ("DATABASE_URL", "sqlite://file:/x", "names a file"),
        ("DATABASE_URL", "sqlite:///nowhere/x.db\n", "a blank at an end, or a line end"),
        ("DATABASE_URL", "sqlite:///nowhere/x.db ", "a blank at an end"),
        ("DATABASE_URL", "sqlite:///nowhere/x.db%20", "a blank at an end"),
        ("DATABASE_URL", "sqlite:///nowhere/x%0A.db", "a line end"),
        ("DATABASE_URL", "sqlite:///nowhere/", "names a file"),
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
        ("PORTAL_LISTEN", "[::]:0", "PORTAL_API_TOKEN"),
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
    let portal = support::Portal::prepare(&Settings::default());
    let refused = |settings: &Settings| {
        let mut command = support::portal::portal_command(settings, portal.work_dir());
        let output = support::process::run_within(support::secs(60), command.arg("serve"));
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
    let portal = support::Portal::prepare(&Settings::default());
    let says = |arguments: &[&str], settings: &Settings| {
        let mut command = support::portal::portal_command(settings, portal.work_dir());
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
    assert_eq!(
        says(&["serve"], &Settings::default()),
        "pbx-portal: .env can't be used: line 1 contains a NUL character\n"
    );
    // Root's own is read, as above; anybody else's could name any program.
    let User(stranger) = BROWSER;
    std::os::unix::fs::chown(portal.work_dir().join(".env"), Some(stranger), None).expect("chown .env");
    let strangers = says(&["serve"], &Settings::default());
    assert!(strangers.contains(&format!("it belongs to the user {stranger}")), "{strangers}");
}

/// The output of `check`, or of `serve` that must not start, with this `.env`.
fn with_dotenv(portal: &Portal, arguments: &[&str], settings: &Settings) -> (Option<i32>, String) {
    let mut command = portal_command(settings, portal.work_dir());
    let output = run_within(secs(60), command.args(arguments));
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.code(), text)
}

#[test]
fn a_dotenv_that_others_can_write_or_that_is_no_file_is_refused() {
    let portal = Portal::prepare(&Settings::default());
    let dotenv = portal.work_dir().join(".env");
    let User(owner) = PORTAL;
    let refused = |says: &str| {
        for arguments in ["serve", "migrate"] {
            let (status, text) = with_dotenv(&portal, &[arguments], &Settings::default());
            assert!(status == Some(2) && text.contains(says) && text.lines().count() == 1, "{arguments}: {text}");
        }
        let (status, report) = with_dotenv(&portal, &["check", "--json"], &Settings::default());
        let report: Value = serde_json::from_str(&report).expect("a report");
        assert!(status == Some(1) && report["findings"][0]["found"].to_string().contains(says), "{report}");
        // What needs no settings.
        for arguments in ["--version", "--help", "openapi"] {
            assert_eq!(with_dotenv(&portal, &[arguments], &Settings::default()).0, Some(0), "{arguments}");
        }
    };
    let check = || with_dotenv(&portal, &["check"], &without_asterisk()).1;
    for (uid, mode, others_write, others_read) in [
        (0, 0o640, false, false),
        (owner, 0o600, false, false),
        (owner, 0o400, false, false),
        (0, 0o644, false, true),
        (owner, 0o660, true, false),
        (0, 0o642, true, false),
        (0, 0o666, true, true),
    ] {
        fs::write(&dotenv, "LOG_LEVEL=info\n").expect("write .env");
        fs::set_permissions(&dotenv, fs::Permissions::from_mode(mode)).expect("chmod .env");
        chown(&dotenv, Some(uid), Some(owner)).expect("chown .env");
        if others_write {
            let advice = format!("chmod go-w {}", dotenv.display());
            refused(&advice);
            // As the message says.
            assert!(run_within(secs(10), Command::new("sh").args(["-c", &advice])).status.success());
        }
        let (table, advice) = (check(), format!("chmod o-r {}", dotenv.display()));
        assert_eq!(table.contains(&advice), others_read, "{mode:o}: {table}");
        fs::remove_file(&dotenv).expect("remove .env");
    }

    // A link is followed, as the package's is.
    let target = portal.work_dir().join("settings");
    std::os::unix::fs::symlink("settings", &dotenv).expect("make a link");
    let mut mkfifo = Command::new("mkfifo");
    assert!(run_within(secs(10), mkfifo.args(["--mode=600"]).arg(&target)).status.success());
    chown(&target, Some(owner), Some(owner)).expect("chown the FIFO");
    refused("settings is not a regular file");
    fs::remove_file(&target).expect("remove the FIFO");
    fs::create_dir(&target).expect("make a folder");
    refused("settings is not a regular file");
    fs::remove_dir(&target).expect("remove the folder");
    fs::write(&target, "PORTAL_LISTEN=from-the-file\n").expect("write it");
    assert!(check().contains("from-the-file"));
    chown(&target, Some(owner), Some(owner)).expect("chown it");
    fs::set_permissions(&target, fs::Permissions::from_mode(0o660)).expect("chmod it");
    refused(&format!("chmod go-w {}", target.display()));
}

#[test]
fn a_dotenv_sets_each_setting_once_in_one_clear_way() {
    let portal = Portal::prepare(&Settings::default());
    let write = |text: &str| fs::write(portal.work_dir().join(".env"), text).expect("write .env");
    let everywhere = Settings::default().with("PORTAL_LISTEN", "0.0.0.0:0");
    for (text, says) in [
        // A quote that is never closed would swallow the token.
        (
            "PORTAL_HOST='pbx\nPORTAL_API_TOKEN=hunter2-hunter2-hunter2\nLOG_LEVEL='info'\n",
            "line 1 has a value that does not end",
        ),
        ("\n# a comment\nPORTAL_HOST=\"pbx\n", "line 3 has a value that does not end"),
        ("PORTAL_API_TOKEN=hunter2\nPORTAL_API_TOKEN=hunter2\n", "line 2 sets PORTAL_API_TOKEN a second time"),
        ("PORTAL_API_TOKN=hunter2\n", "line 1: there is no setting PORTAL_API_TOKN"),
        ("PORTAL_API_TOKEN=hunter2 #x\n", "line 1 has a blank"),
        ("PORTAL_API_TOKEN=say\"hunter2\"\n", "line 1 has a quote"),
        ("DATABASE_URL=\n- hunter2\n", "line 2 is not of the form NAME=value"),
    ] {
        write(text);
        let (status, said) = with_dotenv(&portal, &["serve"], &everywhere);
        assert_eq!((status, said.lines().count()), (Some(2), 1), "{text}: {said}");
        assert!(said.contains(says) && !said.contains("hunter2"), "{text}: {said}");
    }

    // What is only warned of: the service starts, and `check` shows it, too.
    let warnings = ["PGHOST (line 2)", "ASTERISK_BINN (line 3)", "ASTERISK_RUNDIR", "PORTAL_API_TOKN"];
    write("LOG_LEVEL='debug'\nPGHOST=db\nASTERISK_BINN=/bin/false\n");
    let settings = without_asterisk().with("ASTERISK_RUNDIR", "/x").with("PORTAL_API_TOKN", "hunter2");
    let (_, table) = with_dotenv(&portal, &["check"], &settings);
    for warning in warnings {
        assert!(table.contains(warning) && !table.contains("hunter2"), "{warning}: {table}");
    }
    // Also before a start fails: what is ignored may be why.
    let (_, said) =
        with_dotenv(&portal, &["migrate"], &settings.clone().with("DATABASE_URL", "sqlite:///nonexistent/x"));
    for warning in warnings {
        assert!(said.contains(warning) && said.contains("/nonexistent"), "{warning}: {said}");
    }
    let unclear = Portal::prepare(&settings);
    fs::copy(portal.work_dir().join(".env"), unclear.work_dir().join(".env")).expect("copy .env");
    unclear.boot();
    for warning in warnings {
        assert!(unclear.log().contains(warning), "{warning}: {}", unclear.log());
    }
}

#[test]
fn a_token_that_can_be_guessed_is_refused_beyond_loopback() {
    let everywhere = Settings::default().with("PORTAL_LISTEN", "0.0.0.0:0");
    for open in [everywhere.clone(), everywhere.clone().with("PORTAL_ALLOW_UNAUTHENTICATED", "true")] {
        for token in ["~", "fifteen-bytes-x"] {
            let output = run(&["serve"], &open.clone().with("PORTAL_API_TOKEN", token));
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
            assert!(stderr.contains("PORTAL_API_TOKEN has fewer than 16 bytes"), "{stderr}");
            assert!(
                stderr.contains("make a new one with 'openssl rand -hex 32'") && !stderr.contains(token),
                "{stderr}"
            );
        }
    }
    let port = Ports::one();
    let everywhere = without_asterisk().with("PORTAL_LISTEN", format!("0.0.0.0:{}", port.number()));
    for (settings, warning) in [
        (everywhere.clone().with("PORTAL_API_TOKEN", "sixteen-bytes-xx"), None),
        (everywhere.with("PORTAL_ALLOW_UNAUTHENTICATED", "true"), Some("without a token: anybody who reaches it")),
        (without_asterisk().with("PORTAL_API_TOKEN", "x"), Some("a token of fewer than 16 bytes")),
        (without_asterisk(), None),
    ] {
        let log = Portal::start(&settings).log();
        assert_eq!(log.contains(" WARN "), warning.is_some(), "{log}");
        assert!(warning.is_none_or(|warning| log.contains(warning)), "{log}");
    }
}

#[test]
fn a_service_that_runs_as_root_warns_of_it() {
    let portal = Portal::prepare(&without_asterisk());
    portal.boot_as_root();
    assert!(portal.log().contains(" WARN the service runs as root"), "{}", portal.log());
    assert!(!Portal::start(&without_asterisk()).log().contains("runs as root"));
}

#[test]
fn the_last_line_of_a_start_that_fails_is_json_if_the_log_is() {
    let taken = Ports::one();
    let _listener = TcpListener::bind(taken.address()).expect("listen");
    let portal = Portal::prepare(&Settings::default());
    let dotenv = portal.work_dir().join(".env");
    let json = Settings::default().with("LOG_FORMAT", "JSON").with("PORTAL_DATA_DIR", portal.data_dir().display());
    let in_file = Settings::default();
    for (arguments, settings, file, says, status) in [
        (&["serve"][..], json.clone().with("PORTAL_LISTEN", taken.address()), "", "can't be listened on", 1),
        (&["serve"], json.clone().with("DATABASE_URL", "sqlite:///nonexistent/x/portal.db"), "", "", 1),
        (&["serve"], json.clone().with("PORTAL_LISTEN", "x"), "", "PORTAL_LISTEN", 2),
        (&["serve"], json.clone().with("PORTAL_API_TOKEN", ""), "", "set but empty", 2),
        (&["serve", "--jsno"], json.clone(), "", "--jsno", 2),
        // A panic, which is tokio's.
        (&["serve"], json.clone().with("TOKIO_WORKER_THREADS", 0), "", "TOKIO_WORKER_THREADS", 101),
        (&["migrate"], json.clone(), "PORTAL_X=1", "line 1", 2),
        (&["serve", "--log-format", "json"], in_file.clone(), "PORTAL_X=1", "line 1", 2),
        (&["--log-format=json", "--listen=x"], in_file.clone().with("LOG_FORMAT", "text"), "", "--listen", 2),
        (&["serve"], in_file, "LOG_FORMAT=json\nPORTAL_LISTEN=x", "PORTAL_LISTEN", 2),
    ] {
        fs::write(&dotenv, file).expect("write .env");
        let (ended, text) = with_dotenv(&portal, arguments, &settings);
        assert_eq!(ended, Some(status), "{text}");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(line["timestamp"].is_string(), "{line}");
        }
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["level"], "ERROR");
        assert!(last["message"].as_str().is_some_and(|message| message.contains(says)), "{says}: {last}");
    }
}

#[test]
fn no_secret_is_a_flag() {
    let help = run(&["serve", "--help"], &Settings::default());
    let help = String::from_utf8_lossy(&help.stdout);
    assert!(help.contains("--listen") && help.contains("ASTERISK_TIMEOUT_SECS"), "{help}");
    assert!(!help.contains("--database-url") && !help.contains("--api-token"), "{help}");
}
