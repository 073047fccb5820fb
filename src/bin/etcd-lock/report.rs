//! What this program says beside its output: lines on standard error, events on `--status-fd`, readiness for systemd.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use sd_notify::NotifyState;
use serde_json::{Map, Value};

use crate::exit::{CONFIG, Failure};
use crate::say::say;

/// Where the events of one command go.
#[derive(Debug)]
pub(crate) struct Report {
    verbose: bool,
    events: Option<File>,
}

impl Report {
    /// Opens the file descriptor of `--status-fd`.
    pub(crate) fn new(verbose: bool, status_fd: Option<u32>) -> Result<Self, Failure> {
        // A number is no owned descriptor, and this needs none: it opens what the number names once more.
        let open = |fd: u32| {
            File::options().append(true).open(format!("/proc/self/fd/{fd}")).map_err(|error| {
                Failure::new(
                    CONFIG,
                    format!("--status-fd {fd} cannot be written: {error}; redirect it, as in {fd}>events"),
                )
            })
        };
        Ok(Self { verbose, events: status_fd.map(open).transpose()? })
    }

    /// Whether anybody reads how the wait goes on.
    pub(crate) fn follows_waits(&self) -> bool {
        self.verbose || self.events.is_some()
    }

    /// Prints a line if `-v` was given.
    pub(crate) fn detail(&self, text: &str) {
        if self.verbose {
            say(text);
        }
    }

    /// Writes one JSON line to the descriptor of `--status-fd`.
    pub(crate) fn event(&self, name: &str, fields: &[(&str, Value)]) {
        let Some(mut file) = self.events.as_ref() else { return };
        let mut line = Map::new();
        line.insert("event".into(), name.into());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        line.insert("at".into(), u64::try_from(since.as_millis()).unwrap_or(u64::MAX).into());
        line.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        // One write for each line. A reader that has left costs the events, not the command.
        let _ = file.write_all(format!("{}\n", Value::Object(line)).as_bytes());
    }
}

/// Tells systemd that the service is up; does nothing for other parents.
pub(crate) fn ready(status: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        say(&format!("systemd was not notified: {error}"));
    }
}
