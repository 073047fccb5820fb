//! How long this machine keeps a thread waiting that wants to run: what a bound in milliseconds has to be read with.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(5);

/// A thread that only sleeps, and notes how late it wakes.
#[derive(Debug)]
pub(crate) struct Metronome {
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
}

/// The one of this process, running since the first call.
pub(crate) fn metronome() -> &'static Metronome {
    static METRONOME: OnceLock<Metronome> = OnceLock::new();
    METRONOME.get_or_init(Metronome::start)
}

impl Metronome {
    fn start() -> Self {
        let late = Arc::new(Mutex::new(Vec::new()));
        let notes = late.clone();
        std::thread::Builder::new()
            .name("metronome".into())
            .spawn(move || {
                loop {
                    let start = Instant::now();
                    std::thread::sleep(BEAT);
                    let delay = start.elapsed().saturating_sub(BEAT);
                    if delay > BEAT {
                        notes.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), delay));
                    }
                }
            })
            .expect("a thread can be spawned");
        Self { late }
    }

    /// The sum of all delays since then: a thread that had to run several times may have met each of them.
    pub(crate) fn since(&self, start: Instant) -> Duration {
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.iter().rev().take_while(|(at, _)| *at >= start).map(|(_, delay)| *delay).sum()
    }
}

/// Panics if more than `limit` has passed since `start`, the machine's own stalls apart. Returns what has passed.
#[track_caller]
pub(crate) fn assert_within(start: Instant, limit: Duration, what: &str) -> Duration {
    let took = start.elapsed();
    let stalls = metronome().since(start);
    assert!(took <= limit + stalls, "{what}: {took:?}, more than {limit:?} (and {stalls:?} of stalls)");
    took
}
