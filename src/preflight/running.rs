//! Probes that ask the running Asterisk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::getxattr;
use tokio::try_join;

use super::finding::Found;
use crate::asterisk::contact;
use crate::asterisk::control::{Control, Server};
use crate::asterisk::in_force::dialplan::{FirstPriority, first_priorities};
use crate::asterisk::in_force::modules::{self, Modules};
use crate::asterisk::in_force::phones;
use crate::asterisk::registrations;
use crate::domain::some_of;
use crate::host::configuration::MainFiles;
use crate::host::generated::folder;
use crate::pbx::Pbx;
use crate::problem::{Problem, Result, bail, ensure, problem};
use crate::render::CONTEXT;

/// The oldest release line that the portal was tried with.
const OLDEST_RELEASE: u32 = 22;

/// Asterisk answers, is not too old, is fully booted and not shutting down.
pub async fn asterisk(control: &Control) -> Result<Found> {
    let server = control.server().await?;
    let version = &server.version;
    ensure!(
        server.release().is_none_or(|release| release >= OLDEST_RELEASE),
        "Asterisk {version} is older than {OLDEST_RELEASE}, the oldest that the portal works with",
        "upgrade it"
    );
    modules::wait_fully_booted(control).await?;
    control.identity().await?; // Asterisk knows the command for it a moment after it has booted.
    Ok(Found::fine(format!("{version}, fully booted")))
}

/// `cli_permissions.conf` permits all commands that the portal runs.
pub async fn permissions(control: &Control) -> Result<Found> {
    control.permitted().await?;
    Ok(Found::fine("all that are needed"))
}

/// `ASTERISK_BIN` reaches the Asterisk that answers on the control socket.
pub async fn same_asterisk(pbx: &Pbx) -> Result<Found> {
    let by_command = pbx.program.identity().await?;
    let by_socket = pbx.control.identity().await?;
    let program = pbx.program.path.display();
    ensure!(
        by_command == by_socket,
        "{program} reaches another Asterisk than the control socket does",
        "set ASTERISK_BIN and ASTERISK_RUN_DIR to the program and the run directory of one Asterisk"
    );
    Ok(Found::fine(format!("{program} reaches this Asterisk")))
}

/// Without some modules a phone cannot register or be called, or an apply cannot be proven.
pub fn modules(modules: &Modules) -> Result<Found> {
    let missing = modules.missing().join(" ");
    ensure!(
        missing.is_empty(),
        "Asterisk lacks these modules: {missing}",
        "load them in this order (module load, and in modules.conf), and if it refuses one, look into its own log (messages.log)"
    );
    let for_some = modules.missing_for_some().join(" ");
    if !for_some.is_empty() {
        return Ok(Found::Warning(problem!(
            "Asterisk lacks {for_some}, so calls between phones without a common codec fail, or music on hold is silent",
            "load them (module load, and in modules.conf)"
        )));
    }
    Ok(Found::fine("all that are needed are running"))
}

/// Asterisk reads these files, and not a database.
pub async fn files_from_a_database(control: &Control) -> Result<Found> {
    let files = ["pjsip.conf", "extensions.conf", "sorcery.conf"];
    let elsewhere = modules::read_from_a_database(control, &files).await?.join(", ");
    ensure!(
        elsewhere.is_empty(),
        "Asterisk reads from a database what should come from a file: {elsewhere}",
        "remove the line from extconfig.conf and restart Asterisk"
    );
    Ok(Found::fine(format!("none of {}", files.join(", "))))
}

/// Asterisk reads its configuration from `ASTERISK_CONFIG_DIR`.
pub async fn same_config_dir(pbx: &Pbx) -> Result<Found> {
    let theirs = pbx.control.identity().await?.config_dir;
    let ours = pbx.config_dir.display();
    match (fs::canonicalize(&theirs), fs::canonicalize(&pbx.config_dir)) {
        (Ok(a), Ok(b)) if a != b => {
            bail!("Asterisk reads its configuration from {theirs}, not from {ours}", "set ASTERISK_CONFIG_DIR to it")
        }
        // A folder that this user does not see may have another name inside a container.
        _ => Ok(Found::fine(theirs)),
    }
}

/// The user that Asterisk runs as may read both generated files, and all others.
pub async fn readable_by_asterisk(pbx: &Pbx, main: &MainFiles) -> Result<Found> {
    let asterisk = pbx.control.server().await?;
    let user = asterisk.uid;
    for file in pbx.files.both() {
        if let Some(closed) = closed_to(&asterisk, file) {
            let closed = closed.display();
            let folder = folder(file).display();
            bail!(
                "Asterisk runs as user {user}, which may not read {closed}",
                "give the folder a group of that user (chgrp asterisk {folder}; chmod 2750 {folder}), or add that user to the folder's group and restart Asterisk (started with -G or rungroup, it has that group alone)"
            );
        }
    }
    let mut files = main.all().into_iter().flat_map(|config| &config.files);
    if let Some(closed) = files.find_map(|file| closed_to(&asterisk, file)) {
        let closed = closed.display();
        bail!(
            "Asterisk runs as user {user}, which may not read {closed}",
            "give it a group of that user (chgrp asterisk {closed}; chmod g+rX {closed}) and restart Asterisk"
        );
    }
    Ok(Found::fine(format!("as user {user}")))
}

/// No priority 1 of our numbers comes from something else than a file (such as AEL): `dialplan reload` would keep it.
pub async fn routing_from_files(control: &Control) -> Result<Found> {
    let routed = first_priorities(control).await?.unwrap_or_default();
    // `dialplan reload` reads anew what comes from a file (`file:line`), and drops what was typed (`pbx_config`).
    let reloaded = |source: &str| source.contains(':') || source == "pbx_config";
    match routed.into_iter().find(|(_, first)| !reloaded(&first.source)) {
        None => Ok(Found::fine("extensions.conf and what it includes")),
        Some((number, FirstPriority { source, .. })) => bail!(
            "priority 1 of extension {number} in {CONTEXT} comes from {source}, not from a file",
            "remove it there"
        ),
    }
}

/// Asterisk sends the calls to each registered phone to where it is.
pub async fn contacts(control: &Control) -> Result<Found> {
    let (registered, known) = try_join!(registrations::list(control), contact::known(control))?;
    let elsewhere = registered.into_iter().filter(|phone| contact::leads_elsewhere(&phone.contact, &known));
    let elsewhere: Vec<_> = elsewhere.map(|phone| format!("{} ({})", phone.number, phone.contact)).collect();
    if elsewhere.is_empty() {
        return Ok(Found::fine("at the phones themselves, as far as their contacts tell"));
    }
    let phones = some_of(elsewhere);
    Ok(Found::Warning(problem!(
        "phones registered contacts that lead calls elsewhere, perhaps to a trunk: {phones}",
        "if you did not set them up so, delete these users and apply; docs/security.md says what else helps"
    )))
}

/// Nothing that Asterisk shows keeps phones out.
pub async fn phones(control: &Control) -> Result<Found> {
    let found = phones::kept_out(control).await?;
    if found.is_empty() {
        return Ok(Found::fine("Asterisk shows nothing that keeps them out"));
    }
    let join = |text: fn(&Problem) -> &str| found.iter().map(text).collect::<Vec<_>>().join(". ");
    Ok(Found::Warning(Problem { what: join(|one| &one.what), remedy: join(|one| &one.remedy) }))
}

/// The file itself, or the folder above it, that the user of Asterisk may not read.
fn closed_to<'a>(asterisk: &Server, file: &'a Path) -> Option<&'a Path> {
    let may = |path: &Path, bit: u32| {
        let Ok(found) = fs::metadata(path) else { return true };
        // With an access list, the mode does not tell who may read.
        if getxattr(path, "system.posix_acl_access", &mut [0; 1024][..]).is_ok() {
            return true;
        }
        let shift = match (found.uid() == asterisk.uid, asterisk.groups.contains(&found.gid())) {
            (true, _) => 6,
            (_, true) => 3,
            _ => 0,
        };
        asterisk.uid == 0 || found.mode() >> shift & bit == bit
    };
    if may(file, 4) { file.ancestors().skip(1).find(|folder| !may(folder, 1)) } else { Some(file) }
}
