//! Probes that look at Asterisk's configuration files and at the folders of the generated ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::finding::Found;
use crate::host::configuration::{Config, MainFiles, Section};
use crate::host::generated::{GeneratedFiles, folder};
use crate::host::includes::Include;
use crate::host::lines::{Fault, Place};
use crate::host::lock::HostLock;
use crate::host::{foreign, mappings, rights};
use crate::pbx::Pbx;
use crate::problem::{Problem, Result, bail, ensure, problem};
use crate::render::CONTEXT;

/// The files that are read, each with what it includes.
const FILES: &str = "pjsip.conf, extensions.conf and sorcery.conf";

/// `ASTERISK_CONFIG_DIR` is a folder.
pub fn config_dir(path: &Path) -> Result<Found> {
    let name = path.display();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(Found::fine(name.to_string())),
        Ok(_) => bail!("{name} is not a folder", "set ASTERISK_CONFIG_DIR to Asterisk's own"),
        Err(error) => bail!("cannot open {name}: {error}", "set ASTERISK_CONFIG_DIR to Asterisk's own"),
    }
}

/// This process can replace both generated files, and take the lock.
pub fn two_folders(files: &GeneratedFiles) -> Result<Found> {
    rights::check_targets(files)?;
    HostLock::check(files)?;
    let is_open = |folder: &&Path| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o002 != 0);
    let folders = files.both().map(folder);
    if let Some(folder) = folders.into_iter().find(is_open) {
        let folder = folder.display();
        return Ok(Found::Warning(problem!(
            "every user of this machine may write in {folder}, and so run programs as Asterisk",
            "close it with: chmod o-w {folder}"
        )));
    }
    Ok(Found::fine(folders.map(|folder| folder.display().to_string()).join(", ")))
}

/// `pjsip.conf`, `extensions.conf`, `sorcery.conf` and all that they include can be read.
pub fn readable(main: &MainFiles, unreadable: Option<&Problem>) -> Result<Found> {
    if let Some(problem) = unreadable {
        return Err(problem.clone());
    }
    let count: usize = main.all().map(|config| config.files.len()).iter().sum();
    Ok(Found::fine(format!("{FILES}: {count} files with what they include")))
}

/// Every `#include` finds a file. If one does not, Asterisk refuses the file with that line, and the modules that need it do not load.
/// The generated files may be absent before the first apply, unless modules are `missing`.
pub fn includes_that_find(main: &MainFiles, ours: &GeneratedFiles, missing: &[&str]) -> Result<Found> {
    let is_ours = |include: &Include| ours.both().into_iter().any(|own| include.finds(own));
    let fails = |i: &&Include| !i.tries && i.found.is_empty() && (!missing.is_empty() || !is_ours(i));
    let all = main.all().into_iter().flat_map(|config| &config.includes);
    let failing: Vec<_> = all.filter(fails).map(|i| format!("{}: '#include {}'", i.place, i.written)).collect();
    let lines = failing.join(", and ");
    let load = match missing {
        [] => String::new(),
        missing => format!(", then load {} (module load)", missing.join(" ")),
    };
    ensure!(
        failing.is_empty(),
        "{lines} finds no file, so Asterisk refuses what stands in that file",
        "write #tryinclude there, or remove the line{load}"
    );
    Ok(Found::fine(format!("every #include of {FILES} finds some")))
}

/// Asterisk reads the users' objects in `pjsip.conf`, and keeps registrations in its own database.
pub fn mappings(main: &MainFiles, config_dir: &Path, pjsip_declined: bool) -> Result<Found> {
    mappings::check(&main.sorcery, config_dir, pjsip_declined)?;
    Ok(Found::fine("endpoints, auths and AORs in pjsip.conf, registrations in Asterisk's own database"))
}

/// No generated file is included twice: its sections would be there twice.
pub fn included_once(main: &MainFiles, ours: &GeneratedFiles) -> Result<Found> {
    for (config, generated) in [(&main.pjsip, &ours.endpoints), (&main.extensions, &ours.routing)] {
        let mut including = config.includes.iter().filter(|include| include.finds(generated));
        if let (Some(Include { place: first, .. }), Some(Include { place: second, .. })) =
            (including.next(), including.next())
        {
            let file = generated.display();
            let why = if first == second {
                format!("at {first}, because {} is included twice itself", first.file.display())
            } else {
                format!("at {first} and at {second}")
            };
            bail!("{file} is included twice, {why}", "remove one of the two lines");
        }
    }
    Ok(Found::fine("neither of the generated files"))
}

/// Both files are included, by a line that allows for a missing file.
pub fn include_lines(main: &MainFiles, pbx: &Pbx) -> Result<Found> {
    let includes = own_includes(main, pbx)?;
    if let Some(Include { place, .. }) = includes.iter().find(|include| !include.tries) {
        return Ok(Found::Warning(problem!(
            "{place} includes the generated file by #include, so Asterisk refuses the whole file whenever that is missing",
            "write #tryinclude there"
        )));
    }
    Ok(Found::fine(includes.map(|include| include.place.to_string()).join(", ")))
}

/// The lines that include the endpoints and the routing. Fails if one is missing.
pub fn own_includes<'m>(main: &'m MainFiles, pbx: &Pbx) -> Result<[&'m Include; 2]> {
    let include = |config: &'m Config, generated: &Path| {
        let found = config.includes.iter().find(|include| include.finds(generated));
        found.ok_or_else(|| not_included(config, generated, &pbx.config_dir))
    };
    Ok([include(&main.pjsip, &pbx.files.endpoints)?, include(&main.extensions, &pbx.files.routing)?])
}

/// Why no line includes a generated file, as far as Asterisk reads `config`.
fn not_included(config: &Config, generated: &Path, config_dir: &Path) -> Problem {
    let main = &config.files[0];
    let name = main.display();
    let mut faults = config.refused.iter().chain(&config.skipped);
    if let Some(Fault { place, why, remedy }) = faults.find(|fault| fault.place.file == *main) {
        return problem!(
            "{name} may include the generated file, but {place} {why}, so Asterisk does not read what follows",
            "{remedy}"
        );
    }
    let line = generated.strip_prefix(config_dir).unwrap_or(generated).display();
    problem!("{name} does not include the generated file", "add the line '#tryinclude {line}' to it")
}

/// No two sections have one name and type, whatever the name: Asterisk would refuse that type for everybody.
pub fn no_section_twice(main: &MainFiles) -> Result<Found> {
    let mut seen: BTreeMap<(&str, &str), &Place> = BTreeMap::new();
    for section in main.pjsip.sections.iter().filter(|section| !section.template) {
        let Section { name, place, .. } = section;
        if let Some(kind) = section.kind()
            && let Some(first) = seen.insert((name, kind), place)
        {
            bail!(
                "{place}: a second [{name}] of type={kind} (the first is at {first}) makes Asterisk refuse every {kind}",
                "rename or remove it"
            );
        }
    }
    Ok(Found::fine("none in pjsip.conf"))
}

/// Asterisk refuses no line, and skips none by mistake.
pub fn lines(main: &MainFiles) -> Result<Found> {
    let all = main.all();
    let is_main = |place: &Place| all.iter().any(|config| config.files.first() == Some(&place.file));
    // One in a main file does more harm.
    let refused = all.iter().flat_map(|config| &config.refused).min_by_key(|fault| !is_main(&fault.place));
    if let Some(Fault { place, why, remedy }) = refused {
        let rest = "the rest of that file, and the files that the same include line finds after it";
        let what = if is_main(place) { "all of that file" } else { rest };
        bail!("{place}: this line {why}, so Asterisk refuses {what}", "{remedy}");
    }
    Ok(match all.iter().find_map(|config| config.skipped.first()) {
        Some(Fault { place, why, remedy }) => {
            Found::Warning(problem!("{place} {why}, so Asterisk does not read what follows", "{remedy}"))
        }
        None => Found::fine(format!("none in {FILES}")),
    })
}

/// Only the generated files define our numbers.
pub fn nothing_foreign(main: &MainFiles, pbx: &Pbx) -> Result<Found> {
    let wizards = Config::read_if_there(&pbx.config_dir, Path::new("pjsip_wizard.conf"))?;
    foreign::check(main, &wizards, &pbx.files)?;
    Ok(Found::fine("defined only in the generated files"))
}

/// Says where an administrator added something to our context. That is allowed.
pub fn context_elsewhere(main: &MainFiles, ours: &GeneratedFiles) -> Found {
    let dialplan = &main.extensions;
    let generated = dialplan.names_of(&ours.routing);
    let sections = dialplan.sections.iter().map(|section| (&section.name, &section.place));
    let all = sections.chain(dialplan.additions.iter().map(|addition| (&addition.name, &addition.place)));
    let places = all.filter(|(name, place)| *name == CONTEXT && !generated.contains(&place.file));
    let places: Vec<_> = places.map(|(_, place)| place.to_string()).collect();
    Found::fine(match places.join(", ").as_str() {
        "" => format!("{CONTEXT}, defined by the generated file alone"),
        places => format!("{CONTEXT}, with additions of your own at {places}"),
    })
}
