//! The Asterisk that the settings describe.

use std::path::PathBuf;
use std::time::Duration;

use crate::asterisk::control::Control;
use crate::asterisk::reload::AsteriskProgram;
use crate::host::generated::GeneratedFiles;
use crate::settings::Settings;

/// One Asterisk: how to ask it, how to make it reload, and where its configuration and the generated files lie.
#[derive(Debug, Clone)]
pub struct Pbx {
    pub control: Control,
    /// `ASTERISK_BIN`.
    pub program: AsteriskProgram,
    /// `ASTERISK_CONFIG_DIR`.
    pub config_dir: PathBuf,
    pub files: GeneratedFiles,
}

impl Pbx {
    pub fn new(settings: &Settings) -> Self {
        let config_dir = &settings.asterisk_config_dir;
        let config_dir = std::path::absolute(config_dir).unwrap_or_else(|_| config_dir.clone());
        let ends_within = Duration::from_secs(settings.asterisk_timeout_secs);
        Self {
            control: Control::new(&settings.asterisk_run_dir, ends_within),
            program: AsteriskProgram { path: settings.asterisk_bin.clone(), ends_within },
            files: GeneratedFiles::under(&config_dir),
            config_dir,
        }
    }
}
