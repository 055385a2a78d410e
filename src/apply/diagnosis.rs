//! Why Asterisk may not serve what it was given, found by looking. Each cause was seen on a real Asterisk that said "reloaded
//! successfully": it reads another folder; nothing includes the file; it may not read the file; two sections of one name and
//! type anywhere in `pjsip.conf` make it refuse that type for everybody.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::asterisk::config::{Config, Place, Unreadable};
use crate::asterisk::control::{Control, ControlError, Server};
use crate::asterisk::files::GeneratedFiles;
use crate::asterisk::in_force;

/// The first cause that is found; else where to look.
pub(super) async fn likely_cause(control: &Control, config_dir: &Path, files: &GeneratedFiles) -> String {
    match found(control, config_dir, files).await {
        Ok(Some(cause)) => cause,
        Ok(None) => {
            "none was found; Asterisk's own log (/var/log/asterisk/messages.log) says what it refused".to_owned()
        }
        Err(unknown) => unknown,
    }
}

async fn found(control: &Control, config_dir: &Path, files: &GeneratedFiles) -> Result<Option<String>, String> {
    let told = |error: ControlError| error.to_string();
    let reads = in_force::config_dir(control).await.map_err(told)?;
    if let (Ok(reads), Ok(ours)) = (fs::canonicalize(&reads), fs::canonicalize(config_dir))
        && reads != ours
    {
        return Ok(Some(format!(
            "Asterisk reads its configuration from {}, not from {}: set ASTERISK_CONFIG_DIR to it",
            reads.display(),
            config_dir.display()
        )));
    }
    if let Some(cause) = missing_include(config_dir, files).map_err(|unreadable| unreadable.to_string())? {
        return Ok(Some(cause));
    }
    let asterisk = control.server().await.map_err(told)?;
    for file in [&files.endpoints, &files.routing] {
        if let Some(cause) = closed_to(&asterisk, file) {
            return Ok(Some(cause));
        }
    }
    let pjsip =
        Config::read(config_dir, &config_dir.join("pjsip.conf")).map_err(|unreadable| unreadable.to_string())?;
    Ok(twice(&pjsip))
}

/// Which include line `pjsip.conf` or `extensions.conf` lacks, if one does.
pub(super) fn missing_include(config_dir: &Path, files: &GeneratedFiles) -> Result<Option<String>, Unreadable> {
    for (main, generated) in [("pjsip.conf", &files.endpoints), ("extensions.conf", &files.routing)] {
        let main = config_dir.join(main);
        if Config::read(config_dir, &main)?.included(generated).is_empty() {
            let line = generated.strip_prefix(config_dir).unwrap_or(generated).display();
            let main = main.display();
            return Ok(Some(format!(
                "{main} does not include the generated file: add the line '#tryinclude {line}' to it, then apply again"
            )));
        }
    }
    Ok(None)
}

/// Why the user that Asterisk runs as can't read `file`: the file's own mode, or a folder above it.
fn closed_to(asterisk: &Server, file: &Path) -> Option<String> {
    let may = |path: &Path, bit: u32| {
        let Ok(found) = fs::metadata(path) else { return true };
        let shift = if found.uid() == asterisk.uid {
            6
        } else if asterisk.groups.contains(&found.gid()) {
            3
        } else {
            0
        };
        asterisk.uid == 0 || found.mode() >> shift & bit == bit
    };
    let closed = if may(file, 4) { file.ancestors().skip(1).find(|folder| !may(folder, 1)) } else { Some(file) }?;
    let uid = asterisk.uid;
    Some(format!(
        "Asterisk runs as user {uid}, which may not read {}: the folder's group must be one of that user's (chgrp asterisk {}; chmod 2750), then apply again",
        closed.display(),
        file.parent().unwrap_or(file).display()
    ))
}

/// Two sections of one name and type, of whatever name.
fn twice(pjsip: &Config) -> Option<String> {
    let mut seen: BTreeMap<(String, String), &Place> = BTreeMap::new();
    for section in pjsip.sections.iter().filter(|section| !section.template && !section.addition) {
        for kind in pjsip.values(section, "type") {
            if let Some(first) = seen.insert((section.name.to_lowercase(), kind.to_lowercase()), &section.place) {
                return Some(format!(
                    "{}: a second [{}] of type={kind} (the first is at {first}) makes Asterisk refuse every {kind}: rename or remove it, then apply again",
                    section.place, section.name
                ));
            }
        }
    }
    None
}
