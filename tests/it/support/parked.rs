//! A logger that blocks, as a full pipe on stderr does.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};

/// Blocks each thread that logs a line with a certain text, until [`release`](Self::release). For a process without
/// another logger.
#[derive(Debug, Default)]
pub(crate) struct ParkingLogger {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Empty if no thread is to be blocked.
    text: String,
    parked: usize,
}

static LOGGER: ParkingLogger =
    ParkingLogger { state: Mutex::new(State { text: String::new(), parked: 0 }), changed: Condvar::new() };

impl ParkingLogger {
    /// From now on, threads that log the text are blocked.
    pub(crate) fn park_at(text: &str) -> &'static Self {
        let _ = log::set_logger(&LOGGER);
        *LOGGER.state.lock().unwrap() = State { text: text.into(), parked: 0 };
        log::set_max_level(LevelFilter::Trace);
        &LOGGER
    }

    #[track_caller]
    pub(crate) fn wait_until_parked(&self, limit: Duration) {
        let state = self.state.lock().unwrap();
        let (state, _) = self.changed.wait_timeout_while(state, limit, |state| state.parked == 0).unwrap();
        assert!(state.parked > 0, "no thread logged {:?} within {limit:?}", state.text);
    }

    /// Releases all threads, now and later.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().text.clear();
        self.changed.notify_all();
    }
}

impl Log for ParkingLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "etcd_lock"
    }

    fn log(&self, record: &Record<'_>) {
        let mut state = self.state.lock().unwrap();
        if !self.enabled(record.metadata())
            || state.text.is_empty()
            || !record.args().to_string().contains(&state.text)
        {
            return;
        }
        state.parked += 1;
        self.changed.notify_all();
        let state = self.changed.wait_while(state, |state| !state.text.is_empty()).unwrap();
        drop(state);
    }

    fn flush(&self) {}
}
