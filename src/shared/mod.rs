//! State shared by the I/O thread, the watchdog and callers' threads.
//!
//! These files refer to their siblings by `super`, and import atomics, mutexes and condition variables only from
//! `sync`. So `tests/models.rs` can compile them a second time against loom's, and explore the interleavings of
//! threads.

pub(crate) mod mailbox;
pub(crate) mod message;
mod message_queue;

pub(crate) mod deadline;
pub(crate) mod feeds;
pub(crate) mod hold_state;
pub(crate) mod hold_table;
pub(crate) mod report;
mod session_cell;
mod tickets;

pub(crate) mod watchdog;

pub(crate) mod async_hint;
pub(crate) mod process;
mod sync;

#[cfg(test)]
mod tests;
