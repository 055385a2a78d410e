//! Users in a database become SIP extensions that an Asterisk server is proven to serve. `docs/architecture.md` says what each
//! module decides, and why.

#![allow(rustdoc::private_intra_doc_links, reason = "a developer reads it with --document-private-items")]

mod account;
mod api;
mod apply;
mod asterisk;
mod domain;
mod host;
mod pbx;
mod preflight;
mod problem;
mod program;
mod render;
mod settings;
mod storage;

pub use domain::{Email, Name};
pub use program::run;
pub use settings::help;
