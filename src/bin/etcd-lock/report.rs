//! What this program says beside its output: lines on standard error, events on `--status-fd`, readiness for systemd.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use etcd_lock::crossbeam_channel::{Receiver, bounded};
use rustix::fs::OFlags;
use rustix::io::Errno;
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
        Ok(Self { verbose, events: status_fd.map(open).transpose()?.flatten() })
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
        // One write for each line. A reader that has left, or does not read, costs the events, not the command.
        let _ = file.write_all(format!("{}\n", Value::Object(line)).as_bytes());
    }
}

/// Opens what a descriptor's number names, or nothing if that is a pipe without a reader.
///
/// A number is no owned descriptor, and this needs none. Opened once more, the file has its own flags: writes to it do
/// not block, and those of others to the same pipe still do.
fn open(fd: u32) -> Result<Option<File>, Failure> {
    let path = format!("/proc/self/fd/{fd}");
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    match File::options().append(true).custom_flags(flags).open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) && is_pipe(&path) => Ok(None),
        Err(error) => Err(Failure::new(
            CONFIG,
            format!("--status-fd {fd} cannot be written: {error}; redirect it, as in {fd}>events"),
        )),
    }
}

fn is_pipe(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|file| file.file_type().is_fifo())
}

/// As [`ready`], on a thread of its own: a service manager may take its time. Disconnects when it was told.
pub(crate) fn ready_meanwhile(status: String) -> Receiver<()> {
    let (told, notified) = bounded::<()>(0);
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        let tell = move || {
            ready(&status);
            drop(told);
        };
        if let Err(error) = thread::Builder::new().name("ready".into()).spawn(tell) {
            say(&format!("systemd was not notified: {error}"));
        }
    }
    notified
}

/// Tells systemd that the service is up; does nothing for other parents.
pub(crate) fn ready(status: &str) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]) {
        say(&format!("systemd was not notified: {error}"));
    }
}
