//! This server's disk: the two generated files, the lock on them, and Asterisk's own configuration files.

pub mod configuration;
pub mod files;
pub mod foreign;
pub mod generated;
pub mod includes;
pub mod lines;
pub mod lock;
pub mod mappings;
pub mod rights;
