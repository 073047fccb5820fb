//! What etcd and the transport say when something goes wrong, and what it means for a request.

use crate::error::{Cause, LockError};
use crate::store::{Failure, FailureClass};

/// The error of a public call that ended in this failure. `doing` goes on from "etcd is unavailable while ...".
pub(crate) fn lock_error(failure: Failure, doing: &str) -> LockError {
    let source = Cause::new(&failure.message);
    match failure.class {
        FailureClass::NotDone | FailureClass::Unknown | FailureClass::LeaseGone | FailureClass::Compacted => {
            LockError::Unavailable { doing: doing.into(), source }
        }
        FailureClass::NoSpace => LockError::NoSpace,
        FailureClass::Unauthenticated => LockError::Unauthenticated { source },
        FailureClass::PermissionDenied => LockError::PermissionDenied { doing: doing.into(), source },
        FailureClass::Refused => {
            LockError::Internal { what: format!("etcd refused a request while {doing}: {}", failure.message) }
        }
    }
}
