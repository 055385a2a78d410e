//! The suite: by capability, on a real Asterisk, real PostgreSQL and SQLite, real SIP phones.

#[path = "../support/mod.rs"]
mod support;

mod applies;
mod browser;
mod calls;
mod check;
mod contract;
mod database_during_apply;
mod databases;
mod diagnosis;
mod document;
mod failing_postgres;
mod failing_sqlite;
mod faults;
mod fixtures;
mod foreign_hands;
mod hammering;
mod histories;
mod hosts;
mod killed;
mod limits;
mod listing;
mod load;
mod look_before_touching;
mod main_job;
mod names;
mod no_mass_eviction;
mod operations;
mod package;
mod principles;
mod proxy;
mod recordings;
mod reloads;
mod scenes;
mod schemathesis;
mod secrets_at_rest;
mod settings;
mod stale_registrations;
mod surviving_calls;
mod thousand;
mod two_processes;
mod watching;
