//! What caller threads can read about the session by themselves, without I/O and without the I/O thread.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Time;
use crate::error::LossReason;
use crate::info::SessionInfo;
use crate::kv::LeaseId;
use crate::shared::Deadline;

/// The session as [`LockManager::session`](crate::LockManager::session) shows it. Written by the I/O thread.
#[derive(Debug, Default)]
pub(crate) struct SessionCell(Mutex<Option<Standing>>);

#[derive(Debug)]
struct Standing {
    lease: LeaseId,
    ttl: Duration,
    deadline: Arc<Deadline>,
}

impl SessionCell {
    pub(crate) fn up(&self, lease: LeaseId, ttl: Duration, deadline: Arc<Deadline>) {
        *self.0.lock() = Some(Standing { lease, ttl, deadline });
    }

    /// Ends the session's deadline with it.
    pub(crate) fn down(&self, reason: LossReason) {
        if let Some(standing) = self.0.lock().take() {
            standing.deadline.end(reason);
        }
    }

    /// All but `last_answer`, which is not the session's.
    pub(crate) fn info(&self, now: Time) -> SessionInfo {
        match &*self.0.lock() {
            None => SessionInfo::none(),
            Some(Standing { lease, ttl, deadline }) => {
                deadline.remaining(now).map_or_else(SessionInfo::none, |remaining| SessionInfo {
                    lease_id: Some(*lease),
                    ttl: *ttl,
                    remaining,
                    last_answer: None,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Time {
        Time::default() + Duration::from_secs(secs)
    }

    #[test]
    fn the_cell_shows_the_session_that_stands() {
        let cell = SessionCell::default();
        assert_eq!(cell.info(at(1)).lease_id, None);
        let deadline = Arc::new(Deadline::new(at(10)));
        cell.up(7, Duration::from_secs(12), Arc::clone(&deadline));
        let info = cell.info(at(4));
        assert_eq!((info.lease_id, info.remaining), (Some(7), Duration::from_secs(6)));
        assert!(!cell.info(at(11)).is_alive());
        cell.down(LossReason::Closed);
        assert!(!deadline.is_live(at(1)));
        assert!(!cell.info(at(1)).is_alive());
    }
}
