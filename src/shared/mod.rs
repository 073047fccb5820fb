//! What the I/O thread, the watchdog and callers' threads touch together.
//!
//! These files name their siblings by `super`, and take atomics, mutexes and condition variables from `sync` alone: so
//! `tests/models.rs` can build them a second time on loom's, and walk through the interleavings of threads.

pub(crate) mod mailbox;
pub(crate) mod message;
mod message_queue;

pub(crate) mod deadline;
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
