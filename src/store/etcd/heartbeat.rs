//! Whether a watch stream is alive: a stream without events is silent, and so is a dead one.

use std::time::Duration;

use tokio::time::Instant;

/// Silence of the stream before a progress request. Each one costs etcd about as much as a read of a key, so a thousand
/// idle managers must not send them every second...
const QUIET: Duration = Duration::from_secs(2);
/// ...and how long to wait for an answer before the stream counts as dead. Whoever is near the head of a queue does not
/// rely on that, but reads its position every two seconds.
const PROGRESS_TIMEOUT: Duration = Duration::from_millis(1500);
/// Until then the request is repeated: etcd does not answer one that meets a watch which is still catching up with the
/// past, as those that start there are for up to 100 ms.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Extra time per watch: etcd answers only after it has synchronised the watches that start in the past, 512 per 100 ms.
const PROGRESS_TIMEOUT_PER_WATCH: Duration = Duration::from_micros(200);

/// A timer that fires later than this shows that the process was suspended: nobody read the stream meanwhile, so its
/// silence proves nothing.
const MAX_TIMER_DELAY: Duration = Duration::from_secs(1);

/// When the stream showed its last sign of life, and what was asked of it since.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heartbeat {
    heard: Instant,
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    first: Instant,
    last: Instant,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    Nothing,
    AskProgress,
    /// The stream is dead.
    Dead,
}

impl Heartbeat {
    /// The stream showed a sign of life, or begins to be monitored.
    pub(super) fn heard(now: Instant) -> Self {
        Self { heard: now, asked: None }
    }

    /// When to call [`beat`](Self::beat) next; `None` without any watch, because then nobody waits for an event.
    pub(super) fn next(&self, watches: usize) -> Option<Instant> {
        (watches > 0).then(|| match self.asked {
            None => self.heard + QUIET,
            Some(asked) => (asked.last + ASK_AGAIN).min(asked.dead_at(watches)),
        })
    }

    pub(super) fn beat(&mut self, now: Instant, watches: usize) -> Beat {
        let Some(due) = self.next(watches).filter(|due| *due <= now) else {
            return Beat::Nothing;
        };
        if now - due > MAX_TIMER_DELAY {
            *self = Self::heard(now);
            return Beat::Nothing;
        }
        match &mut self.asked {
            Some(asked) if asked.dead_at(watches) <= now => return Beat::Dead,
            Some(asked) => asked.last = now,
            None => self.asked = Some(Asked { first: now, last: now }),
        }
        Beat::AskProgress
    }
}

impl Asked {
    fn dead_at(&self, watches: usize) -> Instant {
        let watches = u32::try_from(watches).unwrap_or(u32::MAX);
        self.first + PROGRESS_TIMEOUT + PROGRESS_TIMEOUT_PER_WATCH.saturating_mul(watches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The beats of a stream that is silent from the start, each in time, as their times and what they call for.
    fn silent(watches: usize) -> Vec<(Duration, Beat)> {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::heard(start);
        let mut beats: Vec<(Duration, Beat)> = Vec::new();
        while beats.last().is_none_or(|(_, beat)| *beat != Beat::Dead) {
            let at = heartbeat.next(watches).unwrap();
            beats.push((at - start, heartbeat.beat(at, watches)));
        }
        beats
    }

    #[test]
    fn a_silent_stream_is_asked_several_times_before_it_is_dead() {
        let beats = silent(100);
        let (dead, asked) = beats.split_last().unwrap();
        assert!(asked.len() >= 3 && asked.iter().all(|(_, beat)| *beat == Beat::AskProgress), "{beats:?}");
        assert!(dead.0 < Duration::from_secs(4), "{beats:?}");
    }

    #[test]
    fn a_stream_with_many_watches_has_more_time_to_answer() {
        assert!(silent(10_000).last().unwrap().0 >= Duration::from_secs(5));
    }

    #[test]
    fn an_answer_ends_the_asking() {
        let start = Instant::now();
        let mut heartbeat = Heartbeat::heard(start);
        let at = heartbeat.next(1).unwrap();
        assert_eq!(heartbeat.beat(at, 1), Beat::AskProgress);
        heartbeat = Heartbeat::heard(at);
        assert_eq!(heartbeat.next(1), Some(at + QUIET));
        assert_eq!(heartbeat.beat(at, 1), Beat::Nothing);
    }

    #[test]
    fn a_process_that_was_suspended_asks_before_it_gives_the_stream_up() {
        let mut heartbeat = Heartbeat::heard(Instant::now());
        let at = heartbeat.next(1).unwrap();
        assert_eq!(heartbeat.beat(at, 1), Beat::AskProgress);
        let woken = at + Duration::from_secs(60);
        assert_eq!(heartbeat.beat(woken, 1), Beat::Nothing);
        assert_eq!(heartbeat.beat(woken + QUIET, 1), Beat::AskProgress);
    }

    #[test]
    fn a_stream_without_watches_is_not_monitored() {
        assert_eq!(Heartbeat::heard(Instant::now()).next(0), None);
    }
}
