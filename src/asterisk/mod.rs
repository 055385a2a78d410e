//! Asterisk as this service meets it: two files that it reads, two commands that make it read them, and a control
//! socket on which it tells what it made of them.
//!
//! | module | what it knows |
//! |---|---|
//! | [`render`] | users → the bytes of the two files; pure |
//! | [`files`] | where the two files lie, and writing them atomically |
//! | [`config`] | Asterisk's configuration syntax, includes followed: what is on disk |
//! | [`foreign`] | what stands outside our files in the numbers that are ours |
//! | [`control`] | the control socket |
//! | [`in_force`] | what Asterisk serves: objects, their values, the dialplan, its modules |
//! | [`registrations`] | which phones are registered, and evicting them |
//! | [`reload`] | `asterisk -rx '… reload'` |

pub mod config;
pub mod control;
pub mod files;
pub mod foreign;
pub mod in_force;
pub mod registrations;
pub mod reload;
pub mod render;

/// The dialplan context of all extensions.
pub const CONTEXT: &str = "synergy-internal";
