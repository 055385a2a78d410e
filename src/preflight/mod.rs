//! What must be set up beside the portal: the probes, and `pbx-portal check`, which shows them.

pub mod check;
pub mod probes;
