//! The library's log lines, recorded for a test.

use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The log lines that contain a text, from the creation to the drop. All tests share the process's only logger, so
/// choose a text that no other test's lines contain.
#[derive(Debug)]
pub(crate) struct Logs {
    id: u64,
}

#[derive(Debug)]
struct Search {
    id: u64,
    text: String,
    found: Vec<Line>,
}

/// A line with its level.
pub(crate) type Line = (Level, String);

#[derive(Debug, Default)]
struct Collector {
    searches: Mutex<(u64, Vec<Search>)>,
}

static COLLECTOR: Collector = Collector { searches: Mutex::new((0, Vec::new())) };

impl Logs {
    pub(crate) fn with(text: &str) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| log::set_logger(&COLLECTOR).expect("the process has no other logger"));
        let mut searches = COLLECTOR.searches();
        searches.0 += 1;
        let id = searches.0;
        searches.1.push(Search { id, text: text.into(), found: Vec::new() });
        log::set_max_level(LevelFilter::Trace);
        Self { id }
    }

    /// The lines so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let searches = COLLECTOR.searches();
        searches.1.iter().find(|search| search.id == self.id).map(|own| own.found.clone()).unwrap_or_default()
    }

    /// The lines so far of this level.
    pub(crate) fn of_level(&self, level: Level) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.0 == level).map(|line| line.1).collect()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let mut searches = COLLECTOR.searches();
        searches.1.retain(|search| search.id != self.id);
        if searches.1.is_empty() {
            log::set_max_level(LevelFilter::Off);
        }
    }
}

impl Collector {
    fn searches(&self) -> MutexGuard<'_, (u64, Vec<Search>)> {
        self.searches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Collector {
    /// Only the library's own lines: the trace of an HTTP/2 library prints the bytes of every frame.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "etcd_lock"
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = record.args().to_string();
        let mut searches = self.searches();
        for search in searches.1.iter_mut().filter(|search| line.contains(&search.text)) {
            search.found.push((record.level(), line.clone()));
        }
    }

    fn flush(&self) {}
}
