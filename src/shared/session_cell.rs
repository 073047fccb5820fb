//! The session's state, which callers' threads read without I/O and without the I/O thread.

use std::sync::Arc;
use std::time::Duration;

use crate::mutex::Mutex;

use crate::clock::Time;
use crate::error::LossReason;
use crate::info::SessionInfo;
use crate::kv::LeaseId;
use crate::shared::deadline::Deadline;

/// The session as [`LockManager::session`](crate::LockManager::session) shows it. Written by the I/O thread, and by the
/// thread that closes the manager if the I/O thread hangs.
#[derive(Debug, Default)]
pub(crate) struct SessionCell(Mutex<Option<Current>>);

#[derive(Debug)]
struct Current {
    lease: LeaseId,
    ttl: Duration,
    deadline: Arc<Deadline>,
}

impl SessionCell {
    pub(crate) fn up(&self, lease: LeaseId, ttl: Duration, deadline: Arc<Deadline>) {
        *self.0.lock() = Some(Current { lease, ttl, deadline });
    }

    /// Removes the session and ends its deadline.
    pub(crate) fn down(&self, reason: LossReason) {
        if let Some(current) = self.0.lock().take() {
            current.deadline.end(reason);
        }
    }

    /// The session's information, without `last_answer`, which belongs to the statistics.
    pub(crate) fn info(&self, now: Time) -> SessionInfo {
        match &*self.0.lock() {
            None => SessionInfo::none(),
            Some(Current { lease, ttl, deadline }) => {
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
    fn the_cell_shows_the_current_session_until_its_deadline() {
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
