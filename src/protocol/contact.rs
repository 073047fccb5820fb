//! Whether the store answers: since when it does not, and why.

use std::time::Duration;

use super::Action;
use crate::clock::Time;
use crate::kv::{Failure, FailureClass};

/// A request without an answer for this long is a sign that the store is silent; slow commits take less.
const SLOW_ANSWER: Duration = Duration::from_secs(1);

/// How often a store that may be silent is looked at again.
const CHECK_AGAIN: Duration = Duration::from_millis(500);

/// What the answers of the store show of its health.
#[derive(Clone, Debug, Default)]
pub(super) struct Contact {
    last_answer: Time,
    /// When the first request since the last answer was sent.
    asked: Option<Time>,
    /// Why the latest request since the last answer failed.
    failure: Option<Failure>,
    /// [`Action::StoreSilent`] was told, [`Action::StoreAnswers`] not yet.
    reported: bool,
}

/// When to look again whether the store is silent, and what to tell now.
pub(super) struct SilenceCheck {
    pub(super) again: Time,
    pub(super) action: Option<Action>,
}

impl Contact {
    pub(super) fn sent(&mut self, now: Time) {
        self.asked.get_or_insert(now);
    }

    /// A request was answered or has failed. A refusal is an answer; no leader and no connection are none.
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

    /// Why the store cannot be asked right now; `None` if there is no sign that it cannot.
    pub(super) fn trouble(&self, now: Time) -> Option<Failure> {
        let silent = || {
            let since = self.asked.filter(|asked| now.since(*asked) >= SLOW_ANSWER)?;
            let message = format!("etcd has not answered for {:.1?}", now.since(since));
            Some(Failure::new(FailureClass::Unknown, message))
        };
        self.failure.clone().or_else(silent)
    }

    /// Tells, once, that the store has been silent for a third of the time for which holds are assured.
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
