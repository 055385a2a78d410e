//! What must be set up beside the portal, and `pbx-portal check`.

pub mod check;
pub mod finding;
pub mod on_disk;
pub mod probes;
pub mod running;
