//! What must be set up beside the portal.
//!
//! | module | what it knows |
//! |---|---|
//! | [`probes`] | the one list of probes, for `check`, for an apply, and for the likely cause of one that failed |
//! | `running` | the probes that ask the running Asterisk |
//! | `on_disk` | the probes that look at files and folders |
//! | [`check`] | `pbx-portal check` |

pub mod check;
mod on_disk;
pub mod probes;
mod running;
