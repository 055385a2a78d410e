//! This server's disk: where the two generated files lie, writing them, the lock on them, and what Asterisk's own
//! configuration files say.
//!
//! | module | what it knows |
//! |---|---|
//! | [`place`] | where the two generated files and the lock lie |
//! | [`rights`] | what keeps somebody from a file, and what to do about it |
//! | [`lock`] | one apply at a time on a host |
//! | [`files`] | writing the two files atomically |
//! | [`configuration`] | Asterisk's configuration syntax, includes followed: what is on disk |
//! | [`includes`] | which files an `#include` finds |
//! | [`foreign`] | what stands outside our files in the numbers that are ours |

pub mod configuration;
pub mod files;
pub mod foreign;
pub mod includes;
pub mod lock;
pub mod place;
pub mod rights;
