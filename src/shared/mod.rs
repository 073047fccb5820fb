//! What the I/O thread, the watchdog and callers' threads touch together.
//!
//! These files name their siblings by `super`, and take atomics, mutexes and condition variables from `sync` alone: so
//! `tests/models.rs` can build them a second time on loom's, and walk through the interleavings of threads.

pub(crate) mod async_hint;
mod deadline;
mod hold_state;
mod holds;
mod queue;
mod report;
mod sync;
mod tickets;

#[cfg(test)]
mod tests;

pub(crate) use deadline::Deadline;
pub(crate) use hold_state::HoldState;
pub(crate) use holds::Ended;
#[cfg(test)]
pub(crate) use holds::HoldTable;
pub(crate) use queue::Queue;
pub(crate) use report::Report;
