//! However much Asterisk or `ASTERISK_BIN` prints, the portal stays small, and so do its answers and its audit rows.

use serde_json::Value;

use crate::fixtures::{failed_apply, host, host_with_script, script, sqlite, sqlite_file};
use support::Portal;

fn text_of(answer: &Value) -> usize {
    answer.to_string().len()
}

#[test]
fn what_asterisk_bin_prints_is_cut() {
    // A reload as usual, then a hundred megabytes that are no text.
    let (asterisk, portal, folder) = host_with_script(
        "[ \"$2\" = 'pjsip reload' ] || exec $asterisk \"$@\"\n\
         $asterisk \"$@\"\nhead -c 100000000 /dev/zero | tr '\\0' '\\377'\nhead -c 100000 /dev/zero >&2\n",
    );
    portal.create_user("Alice", "alice@example.com");
    let applied = portal.apply("suite");
    let printed = applied["reload_results"]["pjsip_reload"]["stdout"].as_str().expect("a text");
    assert!(printed.starts_with("Module 'res_pjsip.so' reloaded successfully."), "{printed:.200}");
    assert!(printed.ends_with('\u{fffd}') && printed.chars().count() <= 16 * 1024, "the first 16 KiB");
    assert!(text_of(&applied) < 100_000, "{}", text_of(&applied));
    assert!(portal.peak_memory() < 80, "{} MiB", portal.peak_memory());

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
    assert!(text_of(&failed) < 100_000 && endless.peak_memory() < 80, "{} MiB", endless.peak_memory());
    let longest = sqlite(
        &endless,
        "SELECT max(length(reload_results) + length(coalesce(error_details, ''))) FROM apply_audit_logs",
    );
    assert!(longest.parse::<u32>().expect("a length") < 100_000, "{longest}");
}

#[test]
fn what_asterisk_prints_on_its_control_socket_has_a_bound() {
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
    assert!(text_of(&failed) < 100_000 && portal.peak_memory() < 220, "{} MiB", portal.peak_memory());
    asterisk.rx("database deltree registrar/contact");
    portal.apply("suite");
}
