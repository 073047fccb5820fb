//! What is worth a log line.

use std::sync::Arc;
use std::time::Duration;

use crate::LOG;
use crate::error::LossReason;
use crate::info::LockInfo;
use crate::name::LockName;
use crate::protocol::{Holder, Ticket};
use crate::shared::{Ended, HoldState};
use crate::store::{Failure, LeaseId, Revision};

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
    SlowWait {
        name: LockName,
        waited: Duration,
        holder: Option<Holder>,
    },
    Asked(LockName, Ticket),
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
            Self::SessionDown(LossReason::Closed) => log::info!(target: LOG, "session closed"),
            Self::SessionDown(reason) => log::warn!(target: LOG, "shared etcd session lost: {reason}"),
            Self::StoreSilent { since, failure, assured } => log::warn!(
                target: LOG,
                "etcd has not answered for {since:.1?} ({failure}); holds are assured for another {assured:.1?}"
            ),
            Self::StoreAnswers { after } => log::warn!(target: LOG, "etcd answers again after {after:.1?}"),
            Self::SlowWait { name, waited, holder } => write_slow_wait(name, *waited, holder.as_ref()),
            Self::SessionFailed(failure) => {
                log::warn!(target: LOG, "no session could be set up: {failure}");
            }
            Self::SessionFailedAgain(failure) => log::debug!(target: LOG, "still no session: {failure}"),
            Self::Asked(name, ticket) => {
                log::debug!(target: LOG, "lock {name:?} asked for, ticket {}", ticket.0);
            }
            Self::Acquired(hold) => {
                log::debug!(target: LOG, "lock {:?} acquired, token {}", hold.name, hold.token);
            }
            Self::Released { name, token } => {
                log::debug!(target: LOG, "lock {name:?} released, token {token}");
            }
            Self::Ended(Ended { lost: None, .. }) => {}
            Self::Ended(Ended { state, lost: Some(LossReason::Closed) }) => log::info!(
                target: LOG,
                "lock {:?} ended with its manager, token {}", state.name, state.token
            ),
            Self::Ended(Ended { state, lost: Some(reason) }) => {
                log::warn!(target: LOG, "lock {:?} lost, token {}: {reason}", state.name, state.token);
            }
        }
    }
}

/// Names the holder, so that whoever reads the log knows whom to ask.
fn write_slow_wait(name: &LockName, waited: Duration, holder: Option<&Holder>) {
    let name = name.as_str();
    let Some(Holder { kv, waiters }) = holder else {
        log::warn!(target: LOG, "waiting for lock {name:?} for {waited:.1?}; etcd does not say who holds it");
        return;
    };
    let info = LockInfo::from_holder(name, kv, *waiters, None);
    let owner = info.owner.as_deref().unwrap_or("a foreign client");
    let age = info.created_at.and_then(|asked| asked.elapsed().ok());
    let age = age.map_or(String::new(), |age| format!(" (which asked for it {age:.0?} ago)"));
    log::warn!(
        target: LOG,
        "waiting for lock {name:?} for {waited:.1?}; held by {owner}{age}, token {}, {waiters} waiting behind it",
        info.token
    );
}
