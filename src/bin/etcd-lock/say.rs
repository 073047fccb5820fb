//! Lines for people.

use std::io::Write;

/// Prints one line on standard error.
pub(crate) fn say(text: &str) {
    // A closed standard error must not end the program.
    let _ = writeln!(std::io::stderr(), "etcd-lock: {text}");
}
