//! What must be set up beside the portal, and `pbx-portal check`.

pub mod check;
mod on_disk;
pub mod probes;
mod running;
