//! Tests of the fixtures, so that a failing test points at the library.

mod faults;
mod judges;
mod servers;

use std::time::Duration;

/// Enough time for actions that take milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);
