//! Users in a database become SIP extensions that an Asterisk server is proven to serve.
//!
//! ```text
//!  POST /users ─► api ─► domain ─► storage ─► PostgreSQL or SQLite
//!                                    │
//!  POST /apply ─► api ─► apply ──────┴─► render ─► host::files ─► asterisk::reload
//!                          │                                            │
//!                          └──◄── proof ◄── asterisk::in_force ◄────────┘
//! ```
//!
//! - [`settings`]: settings, parsed once; every error names the setting.
//! - [`domain`]: names, addresses, numbers and secrets that cannot be wrong.
//! - [`api`]: the four operations over HTTP, and their documentation.
//! - [`storage`]: users and the audit log.
//! - [`apply`]: the protocol of an apply, step by step.
//! - [`preflight`]: what must be set up beside the portal; `pbx-portal check`.
//! - [`host`]: this server's disk: the generated files, and Asterisk's own.
//! - [`asterisk`]: the running Asterisk.
//! - [`render`]: users become the bytes of the two files.
//! - [`account`]: names of this system's users and groups, for messages.

#![allow(rustdoc::private_intra_doc_links, reason = "a developer reads it with --document-private-items")]

mod account;
pub mod api;
pub mod apply;
mod asterisk;
pub mod domain;
mod host;
pub mod preflight;
mod render;
pub mod settings;
pub mod storage;
