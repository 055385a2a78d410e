//! The suite: by capability, on a real Asterisk, real PostgreSQL and SQLite, real SIP phones.

// A whole server takes longest, so these begin first: tests begin in the order of their names.
#[path = "from_source.rs"]
mod a_server_from_source;
#[path = "operations.rs"]
mod a_server_operations;
#[path = "package.rs"]
mod a_server_package;
use a_server_from_source as from_source;
use a_server_operations as operations;
use a_server_package as package;

mod applies;
mod astdb_backup;
mod browser;
mod calls;
mod check;
mod commands;
mod connections;
mod contract;
mod contributing;
mod database_during_apply;
mod databases;
mod diagnosis;
mod document;
mod document_tools;
mod failing_postgres;
mod failing_sqlite;
mod failover;
mod faults;
mod fixtures;
mod foreign_hands;
mod hammering;
mod hand_edited;
mod histories;
mod hostile_phone;
mod hosts;
mod kept_out;
mod killed;
mod lasting;
mod limits;
mod listing;
mod load;
mod look_before_touching;
mod main_job;
mod maintainer_scripts;
mod model;
mod modules;
mod names;
mod nat;
mod no_mass_eviction;
mod options_in_force;
mod poolers;
mod principles;
mod printed;
mod proxy;
mod recordings;
mod reloads;
mod rights;
mod scenes;
mod schemathesis;
mod secrets_at_rest;
mod settings;
mod signals;
mod stale_registrations;
mod steps;
mod surviving_calls;
mod table;
mod taking_away;
mod thousand;
mod traceless;
mod trunk;
mod two_processes;
mod upgrades;
mod watching;
