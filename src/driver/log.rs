//! All lines that the I/O thread logs about locks and sessions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::LossReason;
use crate::info::LockInfo;
use crate::kv::{Failure, LeaseId, Revision};
use crate::log_target::LOG;
use crate::mode::Mode;
use crate::name::LockName;
use crate::protocol::{CurrentHolder, Ticket};
use crate::shared::hold_state::HoldState;
use crate::shared::hold_table::Ended;

/// One transition. Written only after all actions of a turn were carried out: a slow logger must not come between two
/// holds that end together.
#[derive(Debug)]
pub(super) enum Line {
    SessionUp {
        lease: LeaseId,
        ttl: Duration,
    },
    SessionDown(LossReason),
    /// The first failure since there was a session.
    SessionFailed(Failure),
    SessionFailedAgain(Failure),
    StoreSilent {
        since: Duration,
        failure: Failure,
        assured: Duration,
    },
    StoreAnswers {
        after: Duration,
    },
    SlowWait(SlowWait),
    /// etcd has confirmed it.
    SessionClosed(LeaseId),
    /// etcd has not confirmed it in time.
    CloseUnconfirmed(Duration),
    Asked(LockName, Mode, Ticket),
    Acquired(Arc<HoldState>),
    /// etcd has confirmed it.
    Released {
        name: LockName,
        token: Revision,
    },
    Ended(Ended),
}

impl Line {
    pub(super) fn write(&self) {
        match self {
            Self::SessionUp { lease, ttl } => log::info!(target: LOG, "session {lease:x} up, ttl {ttl:?}"),
            Self::SessionClosed(lease) => log::info!(target: LOG, "session closed, lease {lease:x}"),
            Self::CloseUnconfirmed(limit) => log::warn!(
                target: LOG,
                "etcd did not confirm within {limit:?} that the session is closed; what is left expires with the lease"
            ),
            // `SessionClosed` follows when etcd has confirmed it.
            Self::SessionDown(LossReason::Closed) => {}
            Self::SessionDown(reason) => log::warn!(target: LOG, "shared etcd session lost: {reason}"),
            Self::StoreSilent { since, failure, assured } => log::warn!(
                target: LOG,
                "etcd has not answered for {since:.1?} ({failure}); holds are assured for another {assured:.1?}"
            ),
            Self::StoreAnswers { after } => log::warn!(target: LOG, "etcd answers again after {after:.1?}"),
            Self::SlowWait(slow) => log::warn!(target: LOG, "{slow}"),
            Self::SessionFailed(failure) => {
                log::warn!(target: LOG, "no session could be set up: {failure}");
            }
            Self::SessionFailedAgain(failure) => log::debug!(target: LOG, "still no session: {failure}"),
            Self::Asked(name, mode, ticket) => {
                log::debug!(target: LOG, "lock {name:?}{} asked for, ticket {}", mode.remark(), ticket.0);
            }
            Self::Acquired(hold) => log::debug!(
                target: LOG,
                "lock {:?}{} acquired, token {}", hold.name, hold.mode().remark(), hold.token
            ),
            Self::Released { name, token } => {
                log::debug!(target: LOG, "lock {name:?} released, token {token}");
            }
            Self::Ended(Ended { lost: None, .. }) => {}
            Self::Ended(Ended { state, lost: Some(LossReason::Closed) }) => log::info!(
                target: LOG,
                "lock {:?}{} ended with its manager, token {}", state.name, state.mode().remark(), state.token
            ),
            Self::Ended(Ended { state, lost: Some(reason) }) => log::warn!(
                target: LOG,
                "lock {:?}{} lost, token {}: {reason}", state.name, state.mode().remark(), state.token
            ),
        }
    }
}

/// A wait that has become long, with the holder, so that the reader of the log knows whom to ask.
#[derive(Debug)]
pub(super) struct SlowWait {
    pub(super) name: LockName,
    /// What is waited for.
    pub(super) mode: Mode,
    pub(super) waited: Duration,
    pub(super) holder: Option<CurrentHolder>,
    pub(super) waiting_here: usize,
    /// This manager's own lease, if it has a session.
    pub(super) own_lease: Option<LeaseId>,
}

impl fmt::Display for SlowWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mode, waited, holder, waiting_here, own_lease } = self;
        let name = name.as_str();
        write!(f, "waiting for lock {name:?}{} for {waited:.1?}", mode.remark())?;
        let Some(CurrentHolder { kv, waiters }) = holder else {
            return write!(f, "; etcd does not say who holds it; {waiting_here} waiting in this process");
        };
        let info = LockInfo::from_holder(name, kv, *waiters, None);
        write!(f, "; held by {}", info.owner.as_deref().unwrap_or("a foreign client"))?;
        let mut about: Vec<String> = Vec::new();
        if info.mode != Mode::Exclusive {
            about.push(info.mode.to_string());
        }
        match (info.pid, info.thread) {
            _ if kv.lease == 0 => about.push("without a lease: it stays until its key is deleted".into()),
            (_, Some(thread)) if Some(kv.lease) == *own_lease => {
                about.push(format!("this process, thread {thread}"))
            }
            (Some(pid), _) => about.push(format!("pid {pid}")),
            (None, _) => {}
        }
        if let Some(age) = info.created_at.and_then(|asked| asked.elapsed().ok()) {
            about.push(format!("asked for it {age:.0?} ago"));
        }
        if !about.is_empty() {
            write!(f, " ({})", about.join(", "))?;
        }
        write!(f, ", token {}; ", info.token)?;
        if info.mode == Mode::Exclusive {
            write!(f, "{waiters} waiting in etcd, and {waiting_here} in this process")
        } else {
            // Some of those behind it may hold the lock with it.
            write!(f, "{waiters} others hold it or wait in etcd, and {waiting_here} wait in this process")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::contender_value::ContenderValue;
    use crate::kv::KeyValue;
    use crate::name::Root;

    fn slow(value: Vec<u8>, lease: LeaseId, own_lease: LeaseId) -> String {
        slow_behind("1f-1", Mode::Exclusive, value, lease, own_lease)
    }

    fn slow_behind(last: &str, mode: Mode, value: Vec<u8>, lease: LeaseId, own_lease: LeaseId) -> String {
        let root = Root::parse("/app").unwrap();
        let key = format!("/app/jobs/{last}").into();
        let kv = KeyValue { key, value, create_revision: 9, mod_revision: 9, lease };
        let name = LockName::parse(&root, "jobs").unwrap();
        let holder = Some(CurrentHolder { kv, waiters: 3 });
        SlowWait {
            name,
            mode,
            waited: Duration::from_secs(30),
            holder,
            waiting_here: 2,
            own_lease: Some(own_lease),
        }
        .to_string()
    }

    fn ours() -> Vec<u8> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        ContenderValue::new("billing/7", "4", 7, now - Duration::from_millis(45_200)).encode()
    }

    #[test]
    fn a_long_wait_names_the_holder_with_its_age_and_its_process() {
        assert_eq!(
            slow(ours(), 0x1f, 0x2f),
            r#"waiting for lock "jobs" for 30.0s; held by billing/7 (pid 7, asked for it 45s ago), token 9; 3 waiting in etcd, and 2 in this process"#
        );
    }

    #[test]
    fn a_wait_for_what_this_process_holds_says_so_with_the_thread() {
        let line = slow(ours(), 0x1f, 0x1f);
        assert!(line.contains("(this process, thread 4, asked for it 45s ago)"), "{line}");
    }

    #[test]
    fn a_wait_behind_several_holders_names_the_first_one_and_its_mode() {
        assert_eq!(
            slow_behind("~2of8.1f-1", Mode::Permits { take: 7, limit: 8 }, ours(), 0x1f, 0x2f),
            r#"waiting for lock "jobs" (7 of 8 permits) for 30.0s; held by billing/7 (2 of 8 permits, pid 7, asked for it 45s ago), token 9; 3 others hold it or wait in etcd, and 2 wait in this process"#
        );
        let line = slow_behind("~r.1f-1", Mode::Exclusive, ours(), 0x1f, 0x1f);
        assert!(line.contains("(shared, this process, thread 4, asked for it 45s ago)"), "{line}");
    }

    #[test]
    fn a_foreign_holder_and_one_without_a_lease_are_named_as_such() {
        let line = slow(Vec::new(), 0x1f, 0x2f);
        assert!(line.contains("held by a foreign client, token 9"), "{line}");
        let line = slow(Vec::new(), 0, 0);
        assert!(line.contains("without a lease"), "{line}");
    }

    #[test]
    fn a_wait_while_nobody_can_say_who_holds_it_is_told_too() {
        let name = LockName::parse(&Root::parse("/app").unwrap(), "jobs").unwrap();
        let slow = SlowWait {
            name,
            mode: Mode::Shared,
            waited: Duration::from_secs(30),
            holder: None,
            waiting_here: 1,
            own_lease: None,
        };
        let line = slow.to_string();
        assert!(line.contains("etcd does not say who holds it; 1 waiting"), "{line}");
    }
}
