//! The fixtures do what they say: a test that fails should blame the library.

mod faults;
mod judges;
mod servers;

use std::time::Duration;

/// For what takes milliseconds on this machine.
const SOON: Duration = Duration::from_secs(10);
