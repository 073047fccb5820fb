//! Faults that a test can inject into requests.

use crate::kv::{Failure, FailureClass};

/// A fault that [`MemoryStore::fail_next`](crate::memory::MemoryStore::fail_next) injects into a request.
///
/// Renewals of the session are never affected, so that the affected request does not depend on timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The connection breaks before the request arrives: the store never executes it. The manager gets an error at
    /// once, but cannot distinguish it from [`LoseResponse`](Self::LoseResponse).
    LoseRequest,
    /// The store executes the request, and then the connection breaks: the answer is lost. The manager gets an error at
    /// once, but cannot distinguish it from [`LoseRequest`](Self::LoseRequest).
    LoseResponse,
    /// The store refuses the request without executing it, as a member of a cluster without a leader does. A retry can
    /// succeed.
    NoLeader,
    /// The store refuses the request because its database is full.
    NoSpace,
    /// The store refuses the request because the user lacks a permission.
    PermissionDenied,
    /// The store refuses the request because the password is no longer valid.
    Unauthenticated,
}

impl Fault {
    /// The failure returned instead of executing the request; `None` if it is executed.
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

/// The failure of a request whose outcome the client cannot know.
pub(super) fn connection_lost() -> Failure {
    Failure::new(FailureClass::Unknown, "the connection was lost before an answer came")
}
