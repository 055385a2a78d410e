//! This server's disk: the two generated files, the lock on them, and Asterisk's own configuration files.

pub mod configuration;
pub mod files;
pub mod foreign;
pub mod includes;
pub mod lock;
pub mod place;
pub mod rights;
