//! The running Asterisk: the control socket on which it tells what it serves, and the commands that make it reload.
//!
//! | module | what it knows |
//! |---|---|
//! | [`control`] | the control socket |
//! | [`in_force`] | what Asterisk serves: objects, their values, the dialplan, its modules |
//! | [`registrations`] | which phones are registered, and evicting them |
//! | [`reload`] | `asterisk -rx '… reload'` |

pub mod control;
pub mod in_force;
pub mod registrations;
pub mod reload;
