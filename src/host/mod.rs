//! This server's disk: the two generated files, the lock on them, and Asterisk's own configuration files.

mod comments;
pub mod configuration;
pub mod files;
pub mod foreign;
pub mod includes;
pub mod lock;
pub mod mappings;
pub mod place;
pub mod rights;
