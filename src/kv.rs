//! The part of etcd that the library uses, as plain data.
//!
//! The protocol uses only these types. A store (an etcd cluster, or a model of one in memory) executes a [`Request`],
//! answers with a [`Response`] or a [`Failure`], and reports [`WatchEvent`]s.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A position in etcd's history: each committed write transaction increments it.
pub(crate) type Revision = i64;

/// The id of a lease; positive if etcd chose it, 0 for "no lease".
pub(crate) type LeaseId = i64;

/// A key, or a prefix of keys, in etcd. Foreign keys need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(Arc<[u8]>);

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key as text; empty if it is not UTF-8, which our own keys always are.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The first key after all keys that begin with this one: etcd's `range_end` for a prefix.
    /// Empty (to etcd: `\0`, no end) when every byte is 0xff.
    pub(crate) fn prefix_end(&self) -> Vec<u8> {
        let mut end = self.0.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                return end;
            }
        }
        vec![0]
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// The keys that a compare, a range or a watch refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// This key alone.
    Key(Key),
    /// Every key with this prefix.
    Prefix(Key),
    /// From the first key, included, to the second, excluded.
    Between(Key, Key),
}

/// A request to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A new lease under an id of the store's choice. The TTL is sent in whole seconds, rounded up.
    GrantLease { ttl: Duration },
    /// Restart the lease's TTL.
    RenewLease { lease: LeaseId },
    /// Revoke the lease and delete its keys, in one revision.
    RevokeLease { lease: LeaseId },
    /// Query the lease's remaining time.
    LeaseTimeToLive { lease: LeaseId },
    /// Delete one key with a plain request, which etcd executes even under its NOSPACE alarm.
    Delete { key: Key },
    /// A transaction, executed at one revision.
    Txn(Txn),
}

impl Request {
    /// Whether the store logs the request before it executes it, in order with other writes.
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Self::GrantLease { .. } | Self::RevokeLease { .. } | Self::Delete { .. } => true,
            Self::RenewLease { .. } | Self::LeaseTimeToLive { .. } => false,
            Self::Txn(txn) => txn.then.iter().chain(&txn.otherwise).any(|op| !matches!(op, Op::Range(_))),
        }
    }
}

/// A transaction: executes `then` if all compares of `when` hold (or there are none), otherwise `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) when: Vec<Compare>,
    pub(crate) then: Vec<Op>,
    pub(crate) otherwise: Vec<Op>,
}

/// Holds if the field of every key of the span has this relation to the revision. A missing key, and a span without keys,
/// compare as a key whose revisions are 0 (etcd's `applyCompare`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) span: Span,
    pub(crate) field: Field,
    pub(crate) relation: Relation,
    pub(crate) revision: Revision,
}

impl Compare {
    pub(crate) fn equal(span: Span, field: Field, revision: Revision) -> Self {
        Self { span, field, relation: Relation::Equal, revision }
    }

    pub(crate) fn less(span: Span, field: Field, revision: Revision) -> Self {
        Self { span, field, relation: Relation::Less, revision }
    }
}

/// How a [`Compare`] compares a field with its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    /// The field is less than the revision.
    Less,
}

/// The field of a key that a [`Compare`] examines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    CreateRevision,
    ModRevision,
}

/// One operation of a transaction. The compares of a nested transaction, at any depth, are evaluated before any
/// operation of the whole runs; its ranges see the effect of the operations before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Put { key: Key, value: Vec<u8>, lease: LeaseId },
    Range(Range),
    Delete { key: Key },
    Txn(Txn),
}

/// A read of the keys of a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) span: Span,
    pub(crate) order: Order,
    /// The maximum number of keys; 0: all.
    pub(crate) limit: u32,
    /// Only keys created at or before this revision; 0: all.
    pub(crate) max_create_revision: Revision,
    /// Read at this revision; 0: the current one.
    pub(crate) at_revision: Revision,
    /// Omit the values.
    pub(crate) keys_only: bool,
}

/// The order of a range's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By key, ascending.
    ByKey,
    /// By create revision, ascending.
    OldestFirst,
    /// By create revision, descending.
    NewestFirst,
}

/// The answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The store's revision after it executed the request.
    pub(crate) revision: Revision,
    /// The raft term of the member that answered.
    pub(crate) term: u64,
    pub(crate) answer: Answer,
}

/// The part of a [`Response`] that depends on the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To `GrantLease`; the store may have raised the TTL.
    LeaseGranted { lease: LeaseId, ttl: Duration },
    /// To `RenewLease`: the TTL, which starts again. (For a lease that no longer exists the answer is
    /// [`FailureClass::LeaseGone`].)
    LeaseRenewed { ttl: Duration },
    /// To `RevokeLease`.
    LeaseRevoked,
    /// To `LeaseTimeToLive`; `None`: there is no such lease.
    LeaseTimeToLive { remaining: Option<Duration> },
    /// To `Delete`: the number of deleted keys.
    Deleted { count: u64 },
    /// To `Txn`.
    Txn(TxnAnswer),
}

impl Answer {
    /// The answer to a transaction whose only operation is a range.
    pub(crate) fn into_range(self) -> Result<RangeResult, Failure> {
        match self {
            Self::Txn(TxnAnswer { mut results, .. }) if results.len() == 1 => match results.pop() {
                Some(OpResult::Range(range)) => Ok(range),
                _ => Err(Failure::malformed()),
            },
            _ => Err(Failure::malformed()),
        }
    }
}

/// The branch that ran, and one result per operation, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TxnAnswer {
    pub(crate) succeeded: bool,
    pub(crate) results: Vec<OpResult>,
}

/// The result of one [`Op`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpResult {
    Put,
    Range(RangeResult),
    Deleted { count: u64 },
    Txn(TxnAnswer),
}

/// The keys found, and the number of keys in the span (which ignores `limit`, as in etcd).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeResult {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) count: u64,
}

/// A key with its value and its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Key,
    pub(crate) value: Vec<u8>,
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
    pub(crate) lease: LeaseId,
}

/// Identifies a watch of a session; a manager never reuses one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WatchId(pub(crate) u64);

/// What to watch. Deletions are reported, and puts if asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchSpec {
    pub(crate) span: Span,
    /// Report deletions from this revision on, past ones included (which etcd serves on a 100 ms tick); 0: only future
    /// ones, at once.
    pub(crate) from_revision: Revision,
    /// Report puts as well.
    pub(crate) puts: bool,
}

/// An event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WatchEvent {
    /// The watch is open: every deletion after `revision` will be reported (for a past `from_revision`: from that
    /// revision on). Repeated with a later revision whenever the stream behind the watch was reopened; deletions
    /// between the two may have been missed.
    Created { watch: WatchId, revision: Revision },
    /// These watched keys (at least one) were deleted at `revision`, and no other keys of this watch were.
    Deleted { watch: WatchId, keys: Vec<Key>, revision: Revision },
    /// These watched keys (at least one) were put at `revision`; only for a watch that asks for puts.
    Put { watch: WatchId, keys: Vec<Key>, revision: Revision },
}

impl WatchEvent {
    /// The watch that reports it.
    pub(crate) fn watch(&self) -> WatchId {
        match self {
            Self::Created { watch, .. } | Self::Deleted { watch, .. } | Self::Put { watch, .. } => *watch,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Created { revision, .. } | Self::Deleted { revision, .. } | Self::Put { revision, .. } => {
                *revision
            }
        }
    }
}

/// Why a request got no [`Response`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: FailureClass,
    /// The words of the store or of the transport, for logs and errors. Contains no secret.
    pub(crate) message: String,
}

/// What a [`Failure`] says about its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureClass {
    /// Not executed; a later retry may succeed (no connection, no leader, too many requests).
    NotDone,
    /// It is unknown whether the request was executed or still will be.
    Unknown,
    /// Not executed: the lease does not exist.
    LeaseGone,
    /// Not executed: the revision was compacted, or is in the future.
    Compacted,
    /// Not executed: the endpoints belong to another cluster than before.
    ClusterChanged,
    /// Not executed: etcd's database is full. (etcd may answer so after it has executed a put.)
    NoSpace,
    /// Not executed: the credentials are wrong or missing.
    Unauthenticated,
    /// Not executed: the user's role does not permit it.
    PermissionDenied,
    /// Not executed: the transaction has more operations than etcd's `--max-txn-ops`.
    TooManyOperations,
    /// Not executed: the request is larger than etcd's `--max-request-bytes`.
    TooLarge,
    /// Not executed, and no retry can succeed (the store is broken, say).
    Refused,
}

impl Failure {
    pub(crate) fn new(class: FailureClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into() }
    }

    /// The failure of a read whose answer does not have the form of the request.
    pub(crate) fn malformed() -> Self {
        Self::new(FailureClass::Refused, "etcd's answer does not fit the request")
    }

    /// Whether a retry of the same request fails until someone changes the configuration or the cluster.
    pub(crate) fn is_final(&self) -> bool {
        match self.class {
            FailureClass::ClusterChanged
            | FailureClass::NoSpace
            | FailureClass::Unauthenticated
            | FailureClass::PermissionDenied
            | FailureClass::TooManyOperations
            | FailureClass::TooLarge
            | FailureClass::Refused => true,
            FailureClass::NotDone
            | FailureClass::Unknown
            | FailureClass::LeaseGone
            | FailureClass::Compacted => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_no_key_of_it_can_follow() {
        assert_eq!(Key::from("a/").prefix_end(), b"a0");
        assert_eq!(Key::from(vec![b'a', 0xff]).prefix_end(), b"b");
        assert_eq!(Key::from(vec![0xff, 0xff]).prefix_end(), b"\0");
    }
}
