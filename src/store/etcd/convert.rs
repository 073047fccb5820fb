//! Converts the store's requests to etcd's types, and etcd's answers to the store's types.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use etcd_client::{
    CompareOp, DeleteOptions, GetOptions, GetResponse, KvClient, LeaseClient, PutOptions, ResponseHeader,
    SortOrder, SortTarget, TxnOp, TxnOpResponse, TxnResponse, WatchFilterType, WatchOptions,
};

use super::fault::{EtcdFault, FaultKind};
use crate::kv::{
    Answer, Compare, FailureClass, Field, Key, KeyValue, LeaseId, Op, OpResult, Order, Range, RangeResult,
    Relation, Response, Revision, Span, Txn, TxnAnswer, WatchSpec,
};

/// An answer, and the cluster it came from.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) cluster: u64,
}

pub(super) async fn txn(mut kv: KvClient, txn: &Txn) -> Result<Answered, EtcdFault> {
    let response = kv.txn(to_txn(txn)).await?;
    txn_done(txn, &response)
}

pub(super) fn txn_done(txn: &Txn, response: &TxnResponse) -> Result<Answered, EtcdFault> {
    let answer = from_txn(txn, response)?;
    answered(response.header(), Answer::Txn(answer))
}

pub(super) async fn delete(mut kv: KvClient, key: &Key) -> Result<Answered, EtcdFault> {
    let response = kv.delete(key.as_bytes(), None).await?;
    answered(response.header(), Answer::Deleted { count: unsigned(response.deleted()) })
}

pub(super) async fn grant_lease(mut leases: LeaseClient, ttl: Duration) -> Result<Answered, EtcdFault> {
    lease_granted(&leases.grant(whole_seconds(ttl), None).await?)
}

pub(super) fn lease_granted(response: &etcd_client::LeaseGrantResponse) -> Result<Answered, EtcdFault> {
    if !response.error().is_empty() {
        return Err(EtcdFault::class(FailureClass::Refused, response.error()));
    }
    match (response.id(), u64::try_from(response.ttl())) {
        // Lease 0 means no lease: keys would never expire.
        (lease @ 1.., Ok(ttl @ 1..)) => {
            answered(response.header(), Answer::LeaseGranted { lease, ttl: Duration::from_secs(ttl) })
        }
        _ => Err(EtcdFault::malformed("a lease that is none")),
    }
}

pub(super) async fn revoke_lease(mut leases: LeaseClient, lease: LeaseId) -> Result<Answered, EtcdFault> {
    let response = leases.revoke(lease).await?;
    answered(response.header(), Answer::LeaseRevoked)
}

pub(super) async fn lease_time_to_live(
    mut leases: LeaseClient,
    lease: LeaseId,
) -> Result<Answered, EtcdFault> {
    let response = leases.time_to_live(lease, None).await?;
    // -1: there is no such lease.
    let remaining = u64::try_from(response.ttl()).ok().map(Duration::from_secs);
    answered(response.header(), Answer::LeaseTimeToLive { remaining })
}

/// The answer to a renewal, as it comes on the keep-alive stream.
pub(super) fn lease_renewed(response: &etcd_client::LeaseKeepAliveResponse) -> Result<Answered, EtcdFault> {
    match u64::try_from(response.ttl()) {
        Ok(ttl) if ttl > 0 => {
            answered(response.header(), Answer::LeaseRenewed { ttl: Duration::from_secs(ttl) })
        }
        _ => Err(EtcdFault::class(FailureClass::LeaseGone, "the lease does not exist")),
    }
}

/// etcd's TTLs are whole seconds. Rounds up, so that a lease is never shorter than requested.
fn whole_seconds(ttl: Duration) -> i64 {
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn answered(header: Option<&ResponseHeader>, answer: Answer) -> Result<Answered, EtcdFault> {
    let header = header.ok_or_else(|| EtcdFault::malformed("no header"))?;
    if header.revision() < 0 {
        return Err(EtcdFault::malformed("a negative revision"));
    }
    let response = Response { revision: header.revision(), term: header.raft_term(), answer };
    Ok(Answered { response, cluster: header.cluster_id() })
}

/// A count, which etcd sends signed.
fn unsigned(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// The first key and, unless it is one key, the end of a span.
fn bounds(span: &Span) -> (Vec<u8>, Option<Vec<u8>>) {
    match span {
        Span::Key(key) => (key.as_bytes().to_vec(), None),
        // etcd rejects empty keys; `\0` is the smallest key.
        Span::Prefix(key) if key.as_bytes().is_empty() => (vec![0], Some(vec![0])),
        Span::Prefix(key) => (key.as_bytes().to_vec(), Some(key.prefix_end())),
        Span::Between(from, to) => (from.as_bytes().to_vec(), Some(to.as_bytes().to_vec())),
    }
}

fn to_txn(txn: &Txn) -> etcd_client::Txn {
    // The builder panics unless it is called in this order, each step once.
    etcd_client::Txn::new()
        .when(txn.when.iter().map(to_compare).collect::<Vec<_>>())
        .and_then(txn.then.iter().map(to_op).collect::<Vec<_>>())
        .or_else(txn.otherwise.iter().map(to_op).collect::<Vec<_>>())
}

fn to_compare(compare: &Compare) -> etcd_client::Compare {
    let (key, end) = bounds(&compare.span);
    let relation = match compare.relation {
        Relation::Equal => CompareOp::Equal,
        Relation::Less => CompareOp::Less,
    };
    let compare = match compare.field {
        Field::CreateRevision => etcd_client::Compare::create_revision(key, relation, compare.revision),
        Field::ModRevision => etcd_client::Compare::mod_revision(key, relation, compare.revision),
    };
    match end {
        Some(end) => compare.with_range(end),
        None => compare,
    }
}

fn to_op(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            TxnOp::put(key.as_bytes(), value.as_slice(), Some(PutOptions::new().with_lease(*lease)))
        }
        Op::Range(range) => {
            let (key, options) = to_get(range);
            TxnOp::get(key, Some(options))
        }
        Op::Delete { key } => TxnOp::delete(key.as_bytes(), Some(DeleteOptions::new())),
        Op::Txn(txn) => TxnOp::txn(to_txn(txn)),
    }
}

fn to_get(range: &Range) -> (Vec<u8>, GetOptions) {
    let (key, end) = bounds(&range.span);
    let mut options = GetOptions::new()
        .with_limit(i64::from(range.limit))
        .with_max_create_revision(range.max_create_revision)
        .with_revision(range.at_revision);
    if let Some(end) = end {
        options = options.with_range(end);
    }
    if range.keys_only {
        options = options.with_keys_only();
    }
    options = match range.order {
        // etcd's default order.
        Order::ByKey => options,
        Order::OldestFirst => options.with_sort(SortTarget::Create, SortOrder::Ascend),
        Order::NewestFirst => options.with_sort(SortTarget::Create, SortOrder::Descend),
    };
    (key, options)
}

fn from_txn(txn: &Txn, response: &TxnResponse) -> Result<TxnAnswer, EtcdFault> {
    let succeeded = response.succeeded();
    let ops = if succeeded { &txn.then } else { &txn.otherwise };
    // `op_responses` panics if a field is missing from the answer; that must not end the I/O thread.
    let responses = catch_unwind(AssertUnwindSafe(|| response.op_responses()))
        .map_err(|_| EtcdFault::malformed("an empty operation in a transaction"))?;
    if responses.len() != ops.len() {
        return Err(EtcdFault::malformed("a transaction with another number of operations"));
    }
    let results = ops.iter().zip(responses).map(|(op, response)| from_op(op, response));
    Ok(TxnAnswer { succeeded, results: results.collect::<Result<_, _>>()? })
}

fn from_op(op: &Op, response: TxnOpResponse) -> Result<OpResult, EtcdFault> {
    Ok(match (op, response) {
        (Op::Put { .. }, TxnOpResponse::Put(_)) => OpResult::Put,
        (Op::Range(_), TxnOpResponse::Get(get)) => OpResult::Range(from_get(get)?),
        (Op::Delete { .. }, TxnOpResponse::Delete(delete)) => {
            OpResult::Deleted { count: unsigned(delete.deleted()) }
        }
        (Op::Txn(txn), TxnOpResponse::Txn(response)) => OpResult::Txn(from_txn(txn, &response)?),
        _ => return Err(EtcdFault::malformed("the results of other operations")),
    })
}

fn from_get(mut get: GetResponse) -> Result<RangeResult, EtcdFault> {
    let kvs = get.take_kvs().into_iter().map(from_kv).collect::<Result<_, _>>()?;
    Ok(RangeResult { count: unsigned(get.count()), kvs })
}

fn from_kv(kv: etcd_client::KeyValue) -> Result<KeyValue, EtcdFault> {
    let (create_revision, mod_revision, lease) = (kv.create_revision(), kv.mod_revision(), kv.lease());
    if create_revision < 1 || mod_revision < create_revision {
        // A create revision is the fencing token.
        return Err(EtcdFault::malformed("a key with impossible revisions"));
    }
    let (key, value) = kv.into_key_value();
    Ok(KeyValue { key: Key::from(key), value, create_revision, mod_revision, lease })
}

/// The key and options of a watch.
pub(super) fn to_watch(spec: &WatchSpec, watch_id: i64) -> (Vec<u8>, WatchOptions) {
    let (key, end) = bounds(&spec.span);
    let mut options = WatchOptions::new().with_watch_id(watch_id).with_start_revision(spec.from_revision);
    if !spec.puts {
        options = options.with_filters(vec![WatchFilterType::NoPut]);
    }
    if let Some(end) = end {
        options = options.with_range(end);
    }
    (key, options)
}

/// A watched key was put or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    pub(super) revision: Revision,
    pub(super) deleted: bool,
}

/// One message of a watch stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct WatchMessage {
    /// The id of the watch on the stream; -1 where it concerns no watch, or one that could not be created.
    pub(super) wire: i64,
    pub(super) revision: Revision,
    pub(super) cluster: u64,
    pub(super) created: bool,
    pub(super) canceled: bool,
    /// Above 0: the watch asked for deletions that are compacted away.
    pub(super) compact_revision: Revision,
    pub(super) reason: String,
    pub(super) changes: Vec<Change>,
}

pub(super) fn from_watch(response: &etcd_client::WatchResponse) -> Result<WatchMessage, EtcdFault> {
    let header = response.header().ok_or_else(|| EtcdFault::malformed("no header"))?;
    if header.revision() < 0 {
        return Err(EtcdFault::malformed("a negative revision"));
    }
    Ok(WatchMessage {
        wire: response.watch_id(),
        revision: header.revision(),
        cluster: header.cluster_id(),
        created: response.created(),
        canceled: response.canceled(),
        compact_revision: response.compact_revision(),
        reason: response.cancel_reason().to_owned(),
        changes: response.events().iter().filter_map(change).collect(),
    })
}

fn change(event: &etcd_client::Event) -> Option<Change> {
    let kv = event.kv()?;
    // `event_type` panics on unknown types, so check the version: only a deleted key has version 0.
    let deleted = kv.version() == 0;
    Some(Change { key: Key::from(kv.key().to_vec()), revision: kv.mod_revision(), deleted })
}

/// The linearizable read of a health check: it needs a leader and a valid token.
pub(super) async fn probe_read(mut kv: KvClient) -> Result<(), EtcdFault> {
    match kv.get("health", Some(GetOptions::new().with_count_only())).await.map_err(EtcdFault::from) {
        // The endpoint authenticated the user and answered, which is all the probe checks.
        Err(EtcdFault { kind: FaultKind::Class(FailureClass::PermissionDenied), .. }) => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_never_sent_shorter_than_asked_for() {
        let table = [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2), (29_500, 30)];
        for (millis, seconds) in table {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn a_span_has_the_bounds_that_etcd_wants() {
        let key = |text: &str| Key::from(text);
        assert_eq!(bounds(&Span::Key(key("a"))), (b"a".to_vec(), None));
        assert_eq!(bounds(&Span::Prefix(key("a/"))), (b"a/".to_vec(), Some(b"a0".to_vec())));
        assert_eq!(bounds(&Span::Prefix(key(""))), (vec![0], Some(vec![0])));
        assert_eq!(bounds(&Span::Between(key("a"), key("c"))), (b"a".to_vec(), Some(b"c".to_vec())));
    }
}
