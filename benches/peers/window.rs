//! What every contestant measures, in the same way.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;

/// One measurement of one contestant.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Figures {
    /// By worker, within the measured time.
    pub(crate) cycles: Vec<u64>,
    pub(crate) seconds: f64,
    /// Where one name goes round: from one's release to the next one's grant. Else: of each lock call, or put.
    pub(crate) nanos: Vec<u64>,
    /// Acquires and releases in one transaction, on average.
    #[serde(skip)]
    pub(crate) batch: Option<f64>,
}

impl Figures {
    pub(crate) fn rate(&self) -> f64 {
        self.cycles.iter().sum::<u64>() as f64 / self.seconds
    }

    /// The slowest worker's part of the mean.
    pub(crate) fn slowest(&self) -> f64 {
        let mean = self.cycles.iter().sum::<u64>() as f64 / self.cycles.len().max(1) as f64;
        let least = self.cycles.iter().min().copied().unwrap_or(0);
        if mean > 0.0 { least as f64 / mean } else { 0.0 }
    }

    /// The latency that this part of all stays below.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.nanos.clone();
        if sorted.is_empty() {
            return Duration::ZERO;
        }
        let at = ((sorted.len() - 1) as f64 * part).round() as usize;
        Duration::from_nanos(*sorted.select_nth_unstable(at).1)
    }

    /// The part of the latencies that look like a wait for etcd's 100 ms tick.
    pub(crate) fn hump(&self) -> f64 {
        let tick = 50_000_000..200_000_000;
        let waited = self.nanos.iter().filter(|nanos| tick.contains(*nanos)).count();
        waited as f64 / self.nanos.len().max(1) as f64
    }
}

/// The measured time: workers run before it, and finish their last cycle after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    from: Instant,
    until: Instant,
}

impl Window {
    pub(crate) fn opens_in(warm_up: Duration, measured: Duration) -> Self {
        let from = Instant::now() + warm_up;
        Self { from, until: from + measured }
    }

    pub(crate) fn from(&self) -> Instant {
        self.from
    }

    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(crate) fn figures(&self, tallies: Vec<Tally>) -> Figures {
        Figures {
            cycles: tallies.iter().map(|tally| tally.cycles).collect(),
            seconds: (self.until - self.from).as_secs_f64(),
            nanos: tallies.into_iter().flat_map(|tally| tally.nanos).collect(),
            batch: None,
        }
    }
}

/// One worker's count.
#[derive(Debug)]
pub(crate) struct Tally {
    window: Window,
    cycles: u64,
    nanos: Vec<u64>,
}

impl Tally {
    pub(crate) fn new(window: Window) -> Self {
        Self { window, cycles: 0, nanos: Vec::new() }
    }

    /// A cycle has ended; `latency` is none if there was nothing to measure.
    pub(crate) fn cycle(&mut self, latency: Option<Duration>) {
        let now = Instant::now();
        if now < self.window.from || now >= self.window.until {
            return;
        }
        self.cycles += 1;
        let nanos = latency.map(|latency| u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        self.nanos.extend(nanos);
    }
}

/// Measures from one worker's release to the next one's grant. Only the holder touches it.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    released: Mutex<Option<(usize, Instant)>>,
}

impl Relay {
    pub(crate) fn releasing(&self, worker: usize) {
        *self.released.lock() = Some((worker, Instant::now()));
    }

    /// None if the lock did not change hands.
    pub(crate) fn granted(&self, worker: usize) -> Option<Duration> {
        let (from, released) = (*self.released.lock())?;
        (from != worker).then(|| released.elapsed())
    }
}
