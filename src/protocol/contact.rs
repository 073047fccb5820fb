//! Whether the store answers; if not, since when and why.

use std::time::Duration;

use super::messages::Action;
use crate::clock::Time;
use crate::kv::{Failure, FailureClass};

/// A request that is unanswered for this long shows that the store is silent; even slow commits take less.
const SLOW_ANSWER: Duration = Duration::from_secs(1);

/// How often a store that may be silent is checked again.
const CHECK_AGAIN: Duration = Duration::from_millis(500);

/// When the store answered last, and what has failed since.
#[derive(Clone, Debug, Default)]
pub(super) struct Contact {
    last_answer: Time,
    /// When the first request since the last answer was sent.
    asked: Option<Time>,
    /// Why the latest request since the last answer failed.
    failure: Option<Failure>,
    /// [`Action::StoreSilent`] was reported, [`Action::StoreAnswers`] not yet.
    reported: bool,
}

/// When to check again, and what to report now.
pub(super) struct SilenceCheck {
    pub(super) again: Time,
    pub(super) action: Option<Action>,
}

impl Contact {
    pub(super) fn sent(&mut self, now: Time) {
        self.asked.get_or_insert(now);
    }

    /// A request was answered or failed. A refusal is an answer; "no leader" and "no connection" are not.
    pub(super) fn replied(&mut self, now: Time, failure: Option<&Failure>) -> Option<Action> {
        if let Some(failure) = failure
            && matches!(failure.class, FailureClass::NotDone | FailureClass::Unknown)
        {
            self.failure = Some(failure.clone());
            return None;
        }
        let before = std::mem::replace(self, Self { last_answer: now, ..Self::default() });
        before.reported.then(|| Action::StoreAnswers { after: now.since(before.last_answer) })
    }

    /// Why requests cannot be answered right now; `None` if nothing shows that they cannot.
    pub(super) fn trouble(&self, now: Time) -> Option<Failure> {
        let silent = || {
            let since = self.asked.filter(|asked| now.since(*asked) >= SLOW_ANSWER)?;
            let message = format!("etcd has not answered for {:.1?}", now.since(since));
            Some(Failure::new(FailureClass::Unknown, message))
        };
        self.failure.clone().or_else(silent)
    }

    /// Reports, once per outage, that the store has been silent for a third of the time for which holds are assured.
    pub(super) fn check_silence(&mut self, now: Time, deadline: Time, assured: Duration) -> SilenceCheck {
        let due = self.last_answer + assured / 3;
        if now < due {
            return SilenceCheck { again: due, action: None };
        }
        let again = now + CHECK_AGAIN.min(assured / 3);
        let failure = self.trouble(now).filter(|_| !self.reported);
        let action = failure.map(|failure| {
            self.reported = true;
            Action::StoreSilent { since: now.since(self.last_answer), failure, assured: deadline.since(now) }
        });
        SilenceCheck { again, action }
    }
}
