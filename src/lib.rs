//! Users in a database become SIP extensions that an Asterisk server is proven to serve.
//!
//! ```text
//!  POST /users ─► api ─► domain ─► storage ─► PostgreSQL or SQLite
//!                                    │
//!  POST /apply ─► api ─► apply ──────┴─► asterisk::render ─► asterisk::files ─► asterisk::reload
//!                          │                                                         │
//!                          └──◄── proof ◄── asterisk::in_force ◄── control socket ◄──┘
//! ```
//!
//! - [`config`]: settings, parsed once; every error names the setting.
//! - [`domain`]: names, addresses, numbers and secrets that cannot be wrong.
//! - [`api`]: the four operations over HTTP, and their documentation.
//! - [`storage`]: users and the audit log.
//! - [`apply`]: the protocol of an apply, step by step.
//! - [`check`]: `pbx-portal check`, the preflight.
//! - [`probes`]: what must be set up beside the portal, looked at one by one.
//! - [`asterisk`]: the files that Asterisk reads, and the socket on which it tells what it made of them.

pub mod api;
pub mod apply;
pub mod asterisk;
pub mod check;
pub mod config;
pub mod domain;
pub mod probes;
pub mod storage;
