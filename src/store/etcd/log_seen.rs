//! Tracks the cluster's log through the answers seen, to decide whether an unanswered request is lost.

use std::time::Duration;

use tokio::time::Instant;

use crate::kv::{Response, Revision};

/// A write sent this much later than another one comes after it in the log. Requests sent closer together may be
/// reordered by the member's threads.
const ORDERED_AFTER: Duration = Duration::from_millis(50);

/// Minimum wait before an unanswered write is suspected lost: a busy member occasionally takes this long to answer.
const MIN_SUSPICION: Duration = Duration::from_millis(100);
/// A write is also not suspected before it has taken this many times as long as recent writes.
const SLOWER_THAN_USUAL: u32 = 8;

/// Minimum wait after a later write's answer before the earlier write is presumed lost: the answers may arrive out of
/// order.
const MIN_ANSWER_DELAY: Duration = Duration::from_millis(100);

/// What is known of the log from one endpoint's answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogSeen {
    /// The highest raft term in its answers; 0 before the first answer.
    term: u64,
    /// When the latest of the answered writes was sent.
    written: Option<Instant>,
    /// How long its writes take: the recent maximum, which decays.
    usual: Duration,
    /// How long requests waited before they were abandoned: the recent maximum, which decays.
    given_up: Duration,
}

/// The highest revision and term in any endpoint's answers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct History {
    revision: Revision,
    term: u64,
    /// How often the log went back, or the cluster changed.
    resets: u32,
}

/// When a request was sent, and what was known of the log then.
#[derive(Clone, Copy, Debug)]
pub(super) struct SentRequest {
    at: Instant,
    term: u64,
    history: History,
    pub(super) is_write: bool,
}

/// Why a request without an answer is most likely lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overtaken {
    /// There was an election since it was sent. The new leader may still commit entries of the old one.
    ByElection,
    /// A later write was answered, and the log preserves their order.
    ByWrite,
}

impl LogSeen {
    pub(super) fn sending(&self, history: History, is_write: bool) -> SentRequest {
        SentRequest { at: Instant::now(), term: self.term, history, is_write }
    }

    pub(super) fn saw_term(&mut self, term: u64) {
        self.term = self.term.max(term);
    }

    /// This write was answered, if only with a refusal by etcd's apply step, so the log contains it: every write sent well
    /// before it is in the log by now, or lost.
    pub(super) fn wrote(&mut self, sent: SentRequest) {
        if sent.is_write {
            self.written = self.written.max(Some(sent.at));
            self.usual = sent.at.elapsed().max(self.usual * 7 / 8);
            self.given_up = self.given_up * 7 / 8;
        }
    }

    /// This request was abandoned. Its answer may have been in transit (a large answer on a slow network), so the next
    /// request is given more time.
    pub(super) fn gave_up(&mut self, sent: SentRequest) {
        self.given_up = self.given_up.max(sent.at.elapsed());
    }

    /// How long to wait for a write's answer after a later write has been answered.
    pub(super) fn answer_delay(&self) -> Duration {
        self.usual.max(self.given_up).max(MIN_ANSWER_DELAY)
    }

    pub(super) fn overtaken(&self, sent: SentRequest) -> Option<Overtaken> {
        let overtaken = |later: Instant| later >= sent.at + ORDERED_AFTER;
        if sent.is_write && self.written.is_some_and(overtaken) {
            return Some(Overtaken::ByWrite);
        }
        (sent.term > 0 && self.term > sent.term).then_some(Overtaken::ByElection)
    }

    /// How long to wait for the answer to a write before it is suspected to be lost.
    pub(super) fn suspicion(&self, longest: Duration) -> Duration {
        (self.usual * SLOWER_THAN_USUAL).min(longest).max(MIN_SUSPICION)
    }
}

impl History {
    /// Records an answer. Returns the message to log if the log has gone back; later answers do not repeat it.
    ///
    /// A write's answer has at least the revision and term that were known when the write was sent. (A read's may not:
    /// before 3.4.42 and 3.5.28 a lagging member answers from its old state, and it always answers renewals so.)
    pub(super) fn saw(&mut self, sent: SentRequest, response: &Response) -> Option<String> {
        if sent.history.resets != self.resets {
            return None;
        }
        let (known, Response { revision, term, .. }) = (sent.history, response);
        if sent.is_write && (*revision < known.revision || *term < known.term) {
            let before = format!("revision {}, raft term {}", self.revision, self.term);
            *self = Self { revision: *revision, term: *term, resets: self.resets + 1 };
            return Some(format!(
                "etcd has gone back from {before} to revision {revision}, raft term {term}: was it restored from a \
                 backup? Fencing tokens start low again"
            ));
        }
        self.revision = self.revision.max(*revision);
        self.term = self.term.max(*term);
        None
    }

    /// Forgets the history: the endpoints now belong to another cluster.
    pub(super) fn restart(&mut self) {
        *self = Self { resets: self.resets + 1, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Answer;

    fn response(revision: Revision, term: u64) -> Response {
        Response { revision, term, answer: Answer::LeaseRevoked }
    }

    #[test]
    fn a_request_is_overtaken_by_an_election_or_by_a_write_sent_later() {
        let (mut log, history) = (LogSeen::default(), History::default());
        let blind = log.sending(history, true);
        log.saw_term(7);
        let (write, read) = (log.sending(history, true), log.sending(history, false));
        assert!([blind, write, read].iter().all(|&sent| log.overtaken(sent).is_none()));

        log.wrote(SentRequest { at: write.at + ORDERED_AFTER / 2, ..write });
        assert_eq!(log.overtaken(write), None, "they were sent at almost the same time");
        let later = SentRequest { at: write.at + ORDERED_AFTER * 2, ..write };
        log.wrote(SentRequest { is_write: false, ..later });
        assert_eq!(log.overtaken(write), None, "a read has no place in the log");
        log.wrote(later);
        assert_eq!(log.overtaken(write), Some(Overtaken::ByWrite));
        assert_eq!(log.overtaken(read), None);

        log.saw_term(8);
        assert_eq!(log.overtaken(read), Some(Overtaken::ByElection));
        assert_eq!(log.overtaken(log.sending(history, false)), None, "it was sent after the election");
    }

    #[test]
    fn slow_writes_are_suspected_later() {
        let mut log = LogSeen::default();
        let longest = Duration::from_millis(500);
        assert_eq!(log.suspicion(longest), MIN_SUSPICION);
        let sent = |ago: u64| {
            let now = LogSeen::default().sending(History::default(), true);
            SentRequest { at: now.at.checked_sub(Duration::from_millis(ago)).unwrap(), ..now }
        };
        log.wrote(sent(40));
        assert!(log.suspicion(longest) >= Duration::from_millis(320), "{log:?}");
        log.wrote(sent(4000));
        assert_eq!(log.suspicion(longest), longest);
        (0..100).for_each(|_| log.wrote(sent(1)));
        assert_eq!(log.suspicion(longest), MIN_SUSPICION, "recent writes are quick again");
        assert_eq!(log.answer_delay(), MIN_ANSWER_DELAY);
        log.gave_up(sent(300));
        assert!(log.answer_delay() >= Duration::from_millis(300), "the next request is given more time");
    }

    #[test]
    fn a_log_that_goes_back_is_reported_once() {
        let (log, mut history) = (LogSeen::default(), History::default());
        let first = log.sending(history, true);
        assert_eq!(history.saw(first, &response(100, 7)), None);
        assert_eq!(history.saw(first, &response(90, 6)), None, "it was sent before revision 100 was known");
        let (write, other) = (log.sending(history, true), log.sending(history, true));
        let read = log.sending(history, false);
        assert_eq!(history.saw(read, &response(90, 6)), None, "a member may be behind");
        let report = history.saw(write, &response(20, 7)).unwrap();
        assert!(report.contains("revision 100, raft term 7") && report.contains("revision 20"), "{report}");
        assert_eq!(history.saw(other, &response(21, 7)), None, "already reported");
        let later = log.sending(history, true);
        assert!(history.saw(later, &response(21, 6)).is_some(), "a term does not go back either");
        history.restart();
        assert_eq!(history.saw(log.sending(history, true), &response(1, 1)), None);
    }
}
