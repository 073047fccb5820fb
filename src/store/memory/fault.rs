//! What a test can have done to a request.

use crate::kv::{Failure, FailureClass};

/// What [`MemoryStore::fail_next`](crate::memory::MemoryStore::fail_next) does to a request.
///
/// Renewals of the session are never hit, so that it does not depend on the time which request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection breaks before the request gets through: the store never sees it. The manager is told at once,
    /// but cannot tell it from [`LoseResponse`](Self::LoseResponse).
    LoseRequest,
    /// The store carries the request out, and then the connection breaks: the answer never comes. The manager is
    /// told at once, but cannot tell it from [`LoseRequest`](Self::LoseRequest).
    LoseResponse,
    /// The store does not carry the request out and says so, as a member of a cluster without a leader does. Trying
    /// again helps.
    NoLeader,
    /// The store refuses because its space is used up.
    NoSpace,
    /// The store refuses because the user lacks the permission.
    PermissionDenied,
    /// The store refuses because the password does not fit any more.
    Unauthenticated,
}

impl Fault {
    /// The failure that takes the place of the request's execution.
    pub(super) fn instead_of_execution(self) -> Option<Failure> {
        let refused = |class, message| Some(Failure::new(class, message));
        match self {
            Self::LoseRequest => Some(connection_lost()),
            Self::LoseResponse => None,
            Self::NoLeader => refused(FailureClass::NotDone, "etcdserver: no leader"),
            Self::NoSpace => refused(FailureClass::NoSpace, "etcdserver: mvcc: database space exceeded"),
            Self::PermissionDenied => {
                refused(FailureClass::PermissionDenied, "etcdserver: permission denied")
            }
            Self::Unauthenticated => refused(
                FailureClass::Unauthenticated,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
        }
    }
}

/// Of a request whose fate the client cannot know.
pub(super) fn connection_lost() -> Failure {
    Failure::new(FailureClass::Unknown, "the connection was lost before an answer came")
}
