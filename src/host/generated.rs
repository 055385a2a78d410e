//! Where the two generated files and the lock file lie.

use std::path::{Path, PathBuf};

/// The base name of the routing file. `dialplan show` prints it after each line of that file.
pub const ROUTING_FILE_NAME: &str = "generated_routing.conf";

#[derive(Debug, Clone)]
pub struct GeneratedFiles {
    pub endpoints: PathBuf,
    pub routing: PathBuf,
}

impl GeneratedFiles {
    /// The two files below `config_dir`, Asterisk's configuration folder.
    pub fn under(config_dir: &Path) -> Self {
        Self {
            endpoints: config_dir.join("pjsip.d/synergycall/generated_endpoints.conf"),
            routing: config_dir.join("extensions.d/synergycall").join(ROUTING_FILE_NAME),
        }
    }

    /// The endpoints, then the routing.
    pub fn both(&self) -> [&Path; 2] {
        [&self.endpoints, &self.routing]
    }

    /// The lock file, beside the endpoints.
    pub fn lock(&self) -> PathBuf {
        folder(&self.endpoints).join(".pbx-portal.lock")
    }
}

pub fn folder(path: &Path) -> &Path {
    path.parent().expect("a generated file lies in a folder")
}
