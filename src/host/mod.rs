//! This server's disk: the two generated files, the lock on them, and Asterisk's own configuration files.
//!
//! | module | what it knows |
//! |---|---|
//! | [`place`] | the paths of the generated files and of the lock |
//! | [`rights`] | why this process or Asterisk cannot use a file, and what to do |
//! | [`lock`] | one apply at a time on a host |
//! | [`files`] | writing the two files atomically |
//! | [`configuration`] | Asterisk's configuration syntax: a file and all that it includes |
//! | [`includes`] | which files an `#include` finds |
//! | [`foreign`] | what others define of the numbers 1000 to 1999 |

pub mod configuration;
pub mod files;
pub mod foreign;
pub mod includes;
pub mod lock;
pub mod place;
pub mod rights;
