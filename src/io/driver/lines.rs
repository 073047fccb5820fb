//! What is worth a log line.

use std::sync::Arc;
use std::time::Duration;

use crate::LOG;
use crate::error::LossReason;
use crate::name::LockName;
use crate::protocol::Ticket;
use crate::shared::{Ended, HoldState};
use crate::store::{Failure, LeaseId};

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
    Asked(LockName, Ticket),
    Acquired(Arc<HoldState>),
    Ended(Ended),
}

impl Line {
    pub(super) fn write(&self) {
        match self {
            Self::SessionUp { lease, ttl } => log::info!(target: LOG, "session {lease:x} up, ttl {ttl:?}"),
            Self::SessionDown(LossReason::Closed) => log::info!(target: LOG, "session closed"),
            Self::SessionDown(reason) => log::warn!(target: LOG, "shared etcd session lost: {reason}"),
            Self::SessionFailed(failure) => {
                log::warn!(target: LOG, "no session could be set up: {failure}");
            }
            Self::SessionFailedAgain(failure) => log::debug!(target: LOG, "still no session: {failure}"),
            Self::Asked(name, ticket) => {
                log::debug!(target: LOG, "lock {name:?} asked for, ticket {}", ticket.0);
            }
            Self::Acquired(hold) => {
                log::info!(target: LOG, "lock {:?} acquired, token {}", hold.name, hold.token);
            }
            Self::Ended(Ended { state, lost: None }) => {
                log::info!(target: LOG, "lock {:?} released, token {}", state.name, state.token);
            }
            Self::Ended(Ended { state, lost: Some(reason) }) => {
                log::warn!(target: LOG, "lock {:?} lost, token {}: {reason}", state.name, state.token);
            }
        }
    }
}
