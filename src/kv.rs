//! The part of etcd that the library uses, as plain data.
//!
//! The protocol speaks only this vocabulary; what stands behind it (a cluster over the network, or an in-process
//! model) executes a [`Request`], answers with a [`Response`] or a [`Failure`], and reports [`WatchEvent`]s.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A position in etcd's history: every committed write makes one.
pub(crate) type Revision = i64;

/// What etcd calls a lease; positive when the server chose it, 0 for "no lease".
pub(crate) type LeaseId = i64;

/// A key, or the beginning of keys, in etcd. Foreign keys need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(Arc<[u8]>);

impl Key {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Empty if it is not UTF-8, which our own keys are.
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

/// The keys that a compare, a range or a watch speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// This key alone.
    Key(Key),
    /// Every key that begins so.
    Prefix(Key),
    /// From the first key, included, to the second, excluded.
    Between(Key, Key),
}

/// One thing to ask of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A new lease under an id of the store's choice. The TTL is sent in whole seconds, rounded up.
    GrantLease { ttl: Duration },
    /// Start the lease's TTL anew.
    RenewLease { lease: LeaseId },
    /// End the lease and delete its keys, all in one revision.
    RevokeLease { lease: LeaseId },
    /// How long the lease still has.
    LeaseTimeToLive { lease: LeaseId },
    /// Delete one key with a plain request (which etcd carries out even when its space is used up).
    Delete { key: Key },
    /// Everything or nothing, at one revision.
    Txn(Txn),
}

impl Request {
    /// Whether the store writes it into its log to carry it out, where what comes later cannot be carried out before.
    pub(crate) fn is_write(&self) -> bool {
        match self {
            Self::GrantLease { .. } | Self::RevokeLease { .. } | Self::Delete { .. } => true,
            Self::RenewLease { .. } | Self::LeaseTimeToLive { .. } => false,
            Self::Txn(txn) => txn.then.iter().chain(&txn.otherwise).any(|op| !matches!(op, Op::Range(_))),
        }
    }
}

/// A transaction: `then` if every compare of `when` holds (or there is none), else `otherwise`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) when: Vec<Compare>,
    pub(crate) then: Vec<Op>,
    pub(crate) otherwise: Vec<Op>,
}

/// Holds if the field equals the revision for every key of the span. A key that does not exist, and a span without
/// any key, count as a key whose revisions are 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) span: Span,
    pub(crate) field: Field,
    pub(crate) equals: Revision,
}

/// The field of a key that a [`Compare`] looks at.
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
    /// At most so many keys; 0: all.
    pub(crate) limit: u32,
    /// Only keys created at or before this revision; 0: all.
    pub(crate) max_create_revision: Revision,
    /// The store as it was at this revision; 0: now.
    pub(crate) at_revision: Revision,
    /// Leave the values out.
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

/// What the store answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The store's revision when it carried out the request.
    pub(crate) revision: Revision,
    /// The raft term of the member that answered.
    pub(crate) term: u64,
    pub(crate) answer: Answer,
}

/// The part of a [`Response`] that is the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To `GrantLease`; the store may have raised the TTL.
    LeaseGranted { lease: LeaseId, ttl: Duration },
    /// To `RenewLease`: the full TTL, started anew. (A lease that is gone is [`FailureClass::LeaseGone`].)
    LeaseRenewed { ttl: Duration },
    /// To `RevokeLease`.
    LeaseRevoked,
    /// To `LeaseTimeToLive`; `None`: there is no such lease.
    LeaseTimeToLive { remaining: Option<Duration> },
    /// To `Delete`: how many keys there were.
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

/// Which branch ran, and one result for each of its operations, in their order.
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

/// The keys found, and how many the span holds in all (whatever `limit` was).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeResult {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) count: u64,
}

/// One key as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyValue {
    pub(crate) key: Key,
    pub(crate) value: Vec<u8>,
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
    pub(crate) lease: LeaseId,
}

/// Names one watch of a session; never used twice by one manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WatchId(pub(crate) u64);

/// What to watch. Only deletions are reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchSpec {
    pub(crate) span: Span,
    /// Report deletions from this revision on, also past ones (served on etcd's 100 ms tick); 0: from now, live.
    pub(crate) from_revision: Revision,
}

/// What a watch has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WatchEvent {
    /// The watch stands: every deletion after `revision` will be reported (for a past `from_revision`: from that on).
    /// Comes again, with a later revision, whenever the stream behind the watch had to be opened anew; deletions
    /// between the two may have been missed.
    Created { watch: WatchId, revision: Revision },
    /// These watched keys, at least one, were deleted at `revision`, and no other one of this watch was.
    Deleted { watch: WatchId, keys: Vec<Key>, revision: Revision },
}

/// Why a request has no [`Response`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) class: FailureClass,
    /// For people: what the store or the transport said. Never holds a secret.
    pub(crate) message: String,
}

/// What a [`Failure`] means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureClass {
    /// Certainly not carried out; trying again later may help (no connection, no leader, too many requests).
    NotDone,
    /// Nobody knows whether it was, or still will be, carried out.
    Unknown,
    /// Not carried out: the lease does not exist.
    LeaseGone,
    /// Not carried out: the revision asked for is compacted away or not there yet.
    Compacted,
    /// Not carried out: the endpoints belong to another cluster than before.
    ClusterChanged,
    /// Not carried out: the store's space is used up.
    NoSpace,
    /// Not carried out: the credentials are wrong or missing.
    Unauthenticated,
    /// Not carried out: the user's role does not allow it.
    PermissionDenied,
    /// Not carried out: more operations in one transaction than the store is set to allow.
    TooManyOperations,
    /// Not carried out, and it never will be (a request too large, a broken store).
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

    /// Whether the same request will go on failing until somebody changes something.
    pub(crate) fn is_final(&self) -> bool {
        match self.class {
            FailureClass::ClusterChanged
            | FailureClass::NoSpace
            | FailureClass::Unauthenticated
            | FailureClass::PermissionDenied
            | FailureClass::TooManyOperations
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
