//! The measurements, which are the same for all contestants, over any number of processes.

use std::io::{BufRead, Write};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The measured time: workers run before it, and finish their last cycle after it. On the clock that all processes
/// share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    from: Duration,
    until: Duration,
}

/// When a worker called, was granted, and released: nanoseconds from the start of the window.
pub(crate) type Turn = [i64; 3];

/// The report of one process.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sheet {
    /// For each worker, the turns that ended within the measured time.
    pub(crate) turns: Vec<Vec<Turn>>,
    /// Acquires and releases, and their transactions.
    #[serde(default)]
    pub(crate) steps: u64,
    #[serde(default)]
    pub(crate) transactions: u64,
}

/// One measurement of one contestant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// For each worker, within the measured time.
    pub(crate) cycles: Vec<u64>,
    pub(crate) seconds: f64,
    /// Where one name is handed over: from a release to the next grant. Otherwise: of each lock call, or put.
    pub(crate) nanos: Vec<u64>,
    /// Acquires and releases in one transaction, on average.
    pub(crate) batch: Option<f64>,
}

impl Window {
    pub(crate) fn opens_in(warm_up: Duration, measured: Duration) -> Self {
        let from = now() + warm_up;
        Self { from, until: from + measured }
    }

    /// Reports to the parent process that this one is ready, and receives the window.
    pub(crate) fn agreed() -> Self {
        println!("ready");
        std::io::stdout().flush().unwrap();
        let line = std::io::stdin().lock().lines().next().unwrap().unwrap();
        let (from, until) = line.split_once(' ').unwrap();
        let instant = |nanos: &str| Duration::from_nanos(nanos.parse().unwrap());
        Self { from: instant(from), until: instant(until) }
    }

    /// The input of [`agreed`](Self::agreed).
    pub(crate) fn line(&self) -> String {
        format!("{} {}\n", self.from.as_nanos(), self.until.as_nanos())
    }

    pub(crate) fn wait_for_begin(&self) {
        thread::sleep(self.from.saturating_sub(now()));
    }

    pub(crate) fn wait_for_end(&self) {
        thread::sleep(self.until.saturating_sub(now()));
    }

    pub(crate) fn is_over(&self) -> bool {
        now() >= self.until
    }

    /// The present time, as in turns.
    pub(crate) fn now(&self) -> i64 {
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        nanos(now()) - nanos(self.from)
    }

    /// Records a turn that has just ended, unless it is outside the measured time.
    pub(crate) fn note(&self, turns: &mut Vec<Turn>, turn: Turn) {
        let now = now();
        if now >= self.from && now < self.until {
            turns.push(turn);
        }
    }

    /// `shared`: all workers used one name.
    pub(crate) fn figures(&self, sheets: &[Sheet], shared: bool) -> Figures {
        let workers: Vec<&Vec<Turn>> = sheets.iter().flat_map(|sheet| &sheet.turns).collect();
        let transactions: u64 = sheets.iter().map(|sheet| sheet.transactions).sum();
        let steps: u64 = sheets.iter().map(|sheet| sheet.steps).sum();
        Figures {
            cycles: workers.iter().map(|turns| turns.len() as u64).collect(),
            seconds: (self.until - self.from).as_secs_f64(),
            nanos: if shared { hand_overs(&workers) } else { calls(&workers) },
            batch: (transactions > 0).then(|| steps as f64 / transactions as f64),
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// From each release to the next grant, where the lock changed hands.
fn hand_overs(workers: &[&Vec<Turn>]) -> Vec<u64> {
    let turns =
        workers.iter().enumerate().flat_map(|(worker, turns)| turns.iter().map(move |turn| (turn, worker)));
    let mut turns: Vec<(&Turn, usize)> = turns.collect();
    turns.sort_unstable_by_key(|([_, granted, _], _)| *granted);
    let pairs = turns.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    pairs.map(|pair| u64::try_from(pair[1].0[1] - pair[0].0[2]).unwrap_or(0)).collect()
}

fn calls(workers: &[&Vec<Turn>]) -> Vec<u64> {
    let turns = workers.iter().flat_map(|turns| turns.iter());
    turns.map(|[asked, granted, _]| u64::try_from(granted - asked).unwrap_or(0)).collect()
}

impl Figures {
    pub(crate) fn rate(&self) -> f64 {
        self.cycles.iter().sum::<u64>() as f64 / self.seconds
    }

    /// The share of the slowest worker, relative to the mean.
    pub(crate) fn slowest(&self) -> f64 {
        let mean = self.cycles.iter().sum::<u64>() as f64 / self.cycles.len().max(1) as f64;
        let least = self.cycles.iter().min().copied().unwrap_or(0);
        if mean > 0.0 { least as f64 / mean } else { 0.0 }
    }

    /// The latency below which this share of all latencies is.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.nanos.clone();
        if sorted.is_empty() {
            return Duration::ZERO;
        }
        let at = ((sorted.len() - 1) as f64 * part).round() as usize;
        Duration::from_nanos(*sorted.select_nth_unstable(at).1)
    }

    /// The share of latencies that look like a wait for etcd's 100 ms tick.
    pub(crate) fn hump(&self) -> f64 {
        let tick = 50_000_000..200_000_000;
        let waited = self.nanos.iter().filter(|nanos| tick.contains(*nanos)).count();
        waited as f64 / self.nanos.len().max(1) as f64
    }
}
