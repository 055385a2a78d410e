//! However much Asterisk or `ASTERISK_BIN` prints, the portal stays small, and so do its answers and its audit rows.

use serde_json::Value;

use crate::fixtures::{failed_apply, host, script, sqlite, sqlite_file};
use support::lab::Folder;
use support::portal::Settings;
use support::{Asterisk, Portal};

/// The most memory that the portal ever used, in MiB.
fn peak(portal: &Portal) -> u64 {
    portal.memory("VmHWM") / 1024
}

fn text_of(answer: &Value) -> usize {
    answer.to_string().len()
}

#[test]
fn by_asterisk_bin_it_is_cut() {
    let (asterisk, folder) = (Asterisk::start(), Folder::new("script"));
    // A reload as usual, then a hundred megabytes that are no text.
    let program = script(
        &asterisk,
        &folder,
        "[ \"$2\" = 'pjsip reload' ] || exec $asterisk \"$@\"\n\
         $asterisk \"$@\"\nhead -c 100000000 /dev/zero | tr '\\0' '\\377'\nhead -c 100000 /dev/zero >&2\n",
    );
    let portal = Portal::start(&Settings::of(&asterisk).with("ASTERISK_BIN", program.display()));
    portal.create_user("Alice", "alice@example.com");
    let applied = portal.apply("suite");
    let printed = applied["reload_results"]["pjsip_reload"]["stdout"].as_str().expect("a text");
    assert!(printed.starts_with("Module 'res_pjsip.so' reloaded successfully."), "{printed:.200}");
    assert!(printed.ends_with('\u{fffd}') && printed.chars().count() <= 16 * 1024, "the first 16 KiB");
    assert!(text_of(&applied) < 100_000, "{}", text_of(&applied));
    assert!(peak(&portal) < 80, "{} MiB", peak(&portal));

    // One that fails says so with a part of it, and one that never ends is killed.
    script(
        &asterisk,
        &folder,
        "[ \"$2\" != 'pjsip reload' ] || { yes | head -c 1000000 >&2; exit 1; }\nexec $asterisk \"$@\"\n",
    );
    let failed = failed_apply(&portal, &["ended with exit status: 1: y"]);
    assert!(failed["error_details"].as_str().is_some_and(|details| details.len() < 2000) && text_of(&failed) < 100_000);
    let settings = portal.settings().clone().with("ASTERISK_TIMEOUT_SECS", 3);
    script(&asterisk, &folder, "[ \"$2\" != 'pjsip reload' ] || exec yes\nexec $asterisk \"$@\"\n");
    let endless = Portal::prepare(&settings);
    portal.stop();
    endless.boot();
    let failed = failed_apply(&endless, &["did not end within 3 s", "was killed"]);
    assert!(text_of(&failed) < 100_000 && peak(&endless) < 80, "{} MiB", peak(&endless));
    let longest = sqlite(
        &endless,
        "SELECT max(length(reload_results) + length(coalesce(error_details, ''))) FROM apply_audit_logs",
    );
    assert!(longest.parse::<u32>().expect("a length") < 100_000, "{longest}");
}

#[test]
fn on_the_control_socket_it_has_a_bound() {
    let (asterisk, portal) = host();
    portal.create_user("Alice", "alice@example.com");
    portal.apply("suite");
    asterisk.stop();
    // Eighty megabytes of registrations that are none.
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2700) \
         INSERT INTO astdb SELECT '/registrar/contact/x' || i, printf('%.*c', 30000, 'x') FROM n";
    sqlite_file(&asterisk.etc().with_file_name("db").join("astdb.sqlite3"), rows);
    asterisk.boot();
    let failed = failed_apply(&portal, &["printed more than 64 MiB in answer to 'database show registrar/contact'"]);
    assert!(text_of(&failed) < 100_000 && peak(&portal) < 220, "{} MiB", peak(&portal));
    asterisk.rx("database deltree registrar/contact");
    portal.apply("suite");
}
