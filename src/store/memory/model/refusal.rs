//! Refusals, in etcd's words.

use crate::kv::{Failure, FailureClass, Key};

pub(super) fn check_key(key: &Key) -> Result<(), Failure> {
    if key.as_bytes().is_empty() {
        return Err(refused("etcdserver: key is not provided"));
    }
    Ok(())
}

pub(super) fn refused(message: &str) -> Failure {
    Failure::new(FailureClass::Refused, message)
}

pub(super) fn lease_gone() -> Failure {
    Failure::new(FailureClass::LeaseGone, "etcdserver: requested lease not found")
}

pub(super) fn no_space() -> Failure {
    Failure::new(FailureClass::NoSpace, "etcdserver: mvcc: database space exceeded")
}

pub(super) fn denied() -> Failure {
    Failure::new(FailureClass::PermissionDenied, "etcdserver: permission denied")
}
