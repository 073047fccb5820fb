mod deadline;
mod hold_table;
mod message_queue;
mod models;
mod tickets;

use std::time::Duration;

use crate::clock::Time;

/// The instant `secs` seconds after the clock's zero.
fn at(secs: u64) -> Time {
    Time::default() + Duration::from_secs(secs)
}
