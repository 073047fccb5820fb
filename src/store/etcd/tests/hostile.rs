//! Answers that etcd never gives: each becomes a typed error or a well-formed answer, and none causes a panic.

use std::time::Duration;

use etcd_client::proto::{
    PbDeleteResponse, PbEvent, PbKeyValue, PbLeaseGrantResponse, PbLeaseKeepAliveResponse, PbPutResponse,
    PbRangeResponse, PbResponseHeader, PbResponseOp, PbTxnOpResponse, PbTxnResponse, PbWatchResponse,
};
use etcd_client::{LeaseGrantResponse, LeaseKeepAliveResponse, TxnResponse, WatchResponse};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::kv::{Answer, FailureClass, Op, OpResult, Span, Txn, TxnAnswer};
use crate::store::etcd::convert;
use crate::store::etcd::tests::cluster::{key, put, range};

/// Mostly numbers at the limits of their range.
fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(1), Just(-1), Just(i64::MIN), Just(i64::MAX), 1..100_i64, any::<i64>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..8)
}

fn header() -> impl Strategy<Value = Option<PbResponseHeader>> {
    let header = (any::<u64>(), any::<u64>(), number(), any::<u64>()).prop_map(
        |(cluster_id, member_id, revision, raft_term)| PbResponseHeader {
            cluster_id,
            member_id,
            revision,
            raft_term,
        },
    );
    option::weighted(0.9, header)
}

fn kv() -> impl Strategy<Value = PbKeyValue> {
    (bytes(), bytes(), number(), number(), number(), number()).prop_map(
        |(key, value, create_revision, mod_revision, version, lease)| PbKeyValue {
            key,
            value,
            create_revision,
            mod_revision,
            version,
            lease,
        },
    )
}

fn get() -> impl Strategy<Value = PbRangeResponse> {
    (header(), vec(kv(), 0..3), any::<bool>(), number())
        .prop_map(|(header, kvs, more, count)| PbRangeResponse { header, kvs, more, count })
}

/// The result of any operation, or an empty one.
fn op_response() -> impl Strategy<Value = PbResponseOp> {
    let put =
        header().prop_map(|header| PbTxnOpResponse::ResponsePut(PbPutResponse { header, prev_kv: None }));
    let delete = (header(), number()).prop_map(|(header, deleted)| {
        PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse { header, deleted, prev_kvs: Vec::new() })
    });
    let leaf = prop_oneof![put, delete, get().prop_map(PbTxnOpResponse::ResponseRange)];
    let result = leaf.prop_recursive(3, 12, 4, |inner| {
        let responses =
            vec(option::weighted(0.9, inner).prop_map(|response| PbResponseOp { response }), 0..4);
        (header(), any::<bool>(), responses).prop_map(|(header, succeeded, responses)| {
            PbTxnOpResponse::ResponseTxn(PbTxnResponse { header, succeeded, responses })
        })
    });
    option::weighted(0.95, result).prop_map(|response| PbResponseOp { response })
}

fn txn_response() -> impl Strategy<Value = PbTxnResponse> {
    (header(), any::<bool>(), vec(op_response(), 0..5))
        .prop_map(|(header, succeeded, responses)| PbTxnResponse { header, succeeded, responses })
}

/// Any operation that the library sends, nested transactions included.
fn op() -> impl Strategy<Value = Op> {
    let leaf = prop_oneof![
        Just(put("/a", "", 1)),
        Just(Op::Delete { key: key("/a") }),
        Just(Op::Range(range(Span::Prefix(key("/a/"))))),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        (vec(inner.clone(), 0..3), vec(inner, 0..3))
            .prop_map(|(then, otherwise)| Op::Txn(Txn { when: Vec::new(), then, otherwise }))
    })
}

fn txn() -> impl Strategy<Value = Txn> {
    (vec(op(), 0..4), vec(op(), 0..4)).prop_map(|(then, otherwise)| Txn { when: Vec::new(), then, otherwise })
}

/// An answer of the right form for this transaction, with arbitrary numbers, and sometimes with one result replaced.
fn fitting(txn: &Txn) -> BoxedStrategy<PbTxnResponse> {
    let txn = txn.clone();
    (header(), any::<bool>())
        .prop_flat_map(move |(header, succeeded)| {
            let ops = if succeeded { &txn.then } else { &txn.otherwise };
            let responses: Vec<_> = ops.iter().map(fitting_op).collect();
            (responses, option::weighted(0.2, (any::<prop::sample::Index>(), op_response()))).prop_map(
                move |(mut responses, other)| {
                    if let Some((at, other)) = other
                        && !responses.is_empty()
                    {
                        let at = at.index(responses.len());
                        responses[at] = other;
                    }
                    PbTxnResponse { header, succeeded, responses }
                },
            )
        })
        .boxed()
}

fn fitting_op(op: &Op) -> BoxedStrategy<PbResponseOp> {
    let response = match op {
        Op::Put { .. } => Just(PbTxnOpResponse::ResponsePut(PbPutResponse::default())).boxed(),
        Op::Range(_) => get().prop_map(PbTxnOpResponse::ResponseRange).boxed(),
        Op::Delete { .. } => number()
            .prop_map(|deleted| {
                PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse {
                    deleted,
                    ..PbDeleteResponse::default()
                })
            })
            .boxed(),
        Op::Txn(txn) => fitting(txn).prop_map(PbTxnOpResponse::ResponseTxn).boxed(),
    };
    response.prop_map(|response| PbResponseOp { response: Some(response) }).boxed()
}

fn fits(ops: &[Op], results: &[OpResult]) -> bool {
    let one = |(op, result): (&Op, &OpResult)| match (op, result) {
        (Op::Put { .. }, OpResult::Put) | (Op::Delete { .. }, OpResult::Deleted { .. }) => true,
        (Op::Range(_), OpResult::Range(found)) => {
            found.kvs.iter().all(|kv| kv.create_revision > 0 && kv.mod_revision >= kv.create_revision)
        }
        (Op::Txn(txn), OpResult::Txn(answer)) => is_well_formed(txn, answer),
        _ => false,
    };
    ops.len() == results.len() && ops.iter().zip(results).all(one)
}

fn is_well_formed(txn: &Txn, answer: &TxnAnswer) -> bool {
    fits(if answer.succeeded { &txn.then } else { &txn.otherwise }, &answer.results)
}

fn check_txn(txn: &Txn, response: PbTxnResponse) -> Result<(), TestCaseError> {
    match convert::txn_done(txn, &TxnResponse(response)) {
        Ok(answered) => {
            prop_assert!(answered.response.revision >= 0);
            let Answer::Txn(answer) = answered.response.answer else { panic!("no answer to a transaction") };
            prop_assert!(is_well_formed(txn, &answer), "{txn:?} answered {answer:?}");
        }
        // What a server did that answers like this is unknown.
        Err(fault) => prop_assert_eq!(fault.into_failure().class, FailureClass::Unknown),
    }
    Ok(())
}

fn event() -> impl Strategy<Value = PbEvent> {
    (any::<i32>(), option::of(kv())).prop_map(|(r#type, kv)| PbEvent { r#type, kv, prev_kv: None })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_transaction_with_any_answer_is_an_error_or_well_formed(txn in txn(), response in txn_response()) {
        check_txn(&txn, response)?;
    }

    #[test]
    fn a_transaction_with_an_answer_that_almost_fits_is_an_error_or_well_formed(
        (txn, response) in txn().prop_flat_map(|txn| { let fitting = fitting(&txn); (Just(txn), fitting) }),
    ) {
        check_txn(&txn, response)?;
    }

    #[test]
    fn a_granted_lease_has_an_id_and_a_ttl(header in header(), id in number(), ttl in number(), error in ".{0,3}") {
        let response = LeaseGrantResponse(PbLeaseGrantResponse { header, id, ttl, error });
        if let Ok(answered) = convert::lease_granted(&response) {
            let Answer::LeaseGranted { lease, ttl } = answered.response.answer else { panic!("no lease") };
            prop_assert!(lease > 0 && ttl >= Duration::from_secs(1));
        }
    }

    #[test]
    fn a_renewed_lease_has_a_positive_ttl(header in header(), id in number(), ttl in number()) {
        match convert::lease_renewed(&LeaseKeepAliveResponse(PbLeaseKeepAliveResponse { header, id, ttl })) {
            Ok(answered) => {
                let renewed = Answer::LeaseRenewed { ttl: Duration::from_secs(ttl.unsigned_abs()) };
                prop_assert!(ttl > 0);
                prop_assert_eq!(answered.response.answer, renewed);
            }
            Err(fault) => {
                let class = fault.into_failure().class;
                prop_assert_eq!(class == FailureClass::LeaseGone, ttl <= 0);
            }
        }
    }

    #[test]
    fn a_watch_message_yields_all_its_deletions_or_an_error(
        header in header(),
        watch_id in number(),
        flags in any::<(bool, bool, bool)>(),
        compact_revision in number(),
        cancel_reason in ".{0,20}",
        events in vec(event(), 0..4),
    ) {
        let (created, canceled, fragment) = flags;
        let deleted = events.iter().filter(|event| event.kv.as_ref().is_some_and(|kv| kv.version == 0)).count();
        let mut response = PbWatchResponse { header, watch_id, created, canceled, compact_revision, ..Default::default() };
        (response.cancel_reason, response.fragment, response.events) = (cancel_reason, fragment, events);
        match convert::from_watch(&WatchResponse(response)) {
            Ok(message) => prop_assert_eq!(message.changes.iter().filter(|change| change.deleted).count(), deleted),
            Err(fault) => prop_assert_eq!(fault.into_failure().class, FailureClass::Unknown),
        }
    }
}
