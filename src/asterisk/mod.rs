//! The running Asterisk: its control socket, on which it answers questions, and the commands that make it reload.
//!
//! | module | what it knows |
//! |---|---|
//! | [`control`] | the control socket |
//! | [`identity`] | whether two answers come from the same Asterisk |
//! | [`in_force`] | what Asterisk serves: objects, their values, the dialplan, its modules |
//! | [`permissions`] | every command that the portal runs, and whether Asterisk permits it |
//! | [`registrations`] | which phones are registered, and evicting them |
//! | [`reload`] | `asterisk -rx '… reload'` |

pub mod control;
pub mod identity;
pub mod in_force;
pub mod permissions;
pub mod registrations;
pub mod reload;
