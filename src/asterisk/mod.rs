//! The running Asterisk: its control socket, on which it answers questions, and the commands that make it reload.

mod command;
pub mod contact;
pub mod control;
pub mod in_force;
pub mod queues;
pub mod registrations;
pub mod reload;

pub use command::Command;
pub use control::Control;
