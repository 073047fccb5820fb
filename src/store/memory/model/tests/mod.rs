//! One test for each of etcd's rules that the model implements. The differential test in `store/memory/tests` compares
//! the rules with a real server.

mod keys;
mod leases;
mod txn;
mod watches;

use std::time::Duration;

use super::*;
use crate::kv::{Compare, FailureClass, Field, KeyValue, Op, OpResult, Order, Txn, TxnAnswer};

/// A time at which no lease is due.
const NOW: Time = Time::from_nanos(1_000_000_000);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn put(key: &str, value: &str) -> Op {
    put_with(key, value, 0)
}

fn put_with(key: &str, value: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn all_of(prefix: &str) -> Range {
    Range {
        span: Span::Prefix(prefix.into()),
        order: Order::ByKey,
        limit: 0,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: false,
    }
}

fn read(range: Range) -> Op {
    Op::Range(range)
}

/// Compares the create revision of one key.
fn created(key: &str, revision: Revision) -> Compare {
    Compare::equal(Span::Key(key.into()), Field::CreateRevision, revision)
}

fn always(then: Vec<Op>) -> Txn {
    Txn { then, ..Txn::default() }
}

fn when(when: Vec<Compare>, then: Vec<Op>, otherwise: Vec<Op>) -> Txn {
    Txn { when, then, otherwise }
}

fn names(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| kv.key.to_string()).collect()
}

/// The result of the n-th operation of a transaction, which was a range.
fn found(answer: &TxnAnswer, nth: usize) -> &RangeResult {
    match &answer.results[nth] {
        OpResult::Range(result) => result,
        other => panic!("not a range: {other:?}"),
    }
}

/// Short forms of the requests in these tests.
impl Model {
    fn class(&mut self, request: Request) -> FailureClass {
        self.execute(NOW, &request).unwrap_err().class
    }

    fn do_txn(&mut self, txn: Txn) -> TxnAnswer {
        match self.execute(NOW, &Request::Txn(txn)).unwrap().answer {
            Answer::Txn(answer) => answer,
            other => panic!("not a transaction's answer: {other:?}"),
        }
    }

    fn do_ops(&mut self, then: Vec<Op>) -> TxnAnswer {
        self.do_txn(always(then))
    }

    fn do_put(&mut self, key: &str, value: &str) -> Revision {
        self.do_ops(vec![put(key, value)]);
        self.revision()
    }

    fn do_delete(&mut self, key: &str) -> Revision {
        self.execute(NOW, &Request::Delete { key: key.into() }).unwrap();
        self.revision()
    }

    fn do_grant(&mut self, ttl: Duration) -> LeaseId {
        match self.execute(NOW, &Request::GrantLease { ttl }).unwrap().answer {
            Answer::LeaseGranted { lease, .. } => lease,
            other => panic!("not a grant: {other:?}"),
        }
    }

    fn get(&self, key: &str) -> Option<KeyValue> {
        let range = Range { span: Span::Key(key.into()), ..all_of("") };
        self.read(&range).unwrap().kvs.pop()
    }

    fn names_at(&self, at_revision: Revision) -> Vec<String> {
        names(&self.read(&Range { at_revision, ..all_of("") }).unwrap().kvs)
    }

    fn notices(&mut self) -> Vec<(Watcher, Notice)> {
        std::iter::from_fn(|| self.poll_notice()).collect()
    }
}

#[test]
fn a_full_store_refuses_puts_and_grants_only() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(10));
    model.do_put("a", "");
    model.set_no_space(true);
    let revision = model.revision();

    assert_eq!(model.class(Request::GrantLease { ttl: secs(5) }), FailureClass::NoSpace);
    assert_eq!(model.class(Request::Txn(always(vec![put("b", "")]))), FailureClass::NoSpace);
    let in_the_other_branch = when(vec![], vec![delete("a")], vec![put("b", "")]);
    assert_eq!(model.class(Request::Txn(in_the_other_branch)), FailureClass::NoSpace);
    let nested = always(vec![Op::Txn(always(vec![put("b", "")]))]);
    assert_eq!(model.class(Request::Txn(nested)), FailureClass::NoSpace);
    assert_eq!(model.revision(), revision);

    model.execute(NOW, &Request::RenewLease { lease }).unwrap();
    assert_eq!(found(&model.do_ops(vec![read(all_of(""))]), 0).count, 1);
    model.do_ops(vec![delete("a")]);
    model.execute(NOW, &Request::RevokeLease { lease }).unwrap();

    model.set_no_space(false);
    model.do_put("b", "");
}

#[test]
fn a_denied_span_refuses_every_request_that_could_touch_it() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(10));
    model.do_ops(vec![put_with("secret/key", "", lease), put("open", "")]);
    model.deny(Some(Span::Prefix("secret/".into())));
    let denied = |model: &mut Model, request| {
        assert_eq!(model.class(request), FailureClass::PermissionDenied);
    };

    denied(&mut model, Request::Delete { key: "secret/key".into() });
    denied(&mut model, Request::Txn(always(vec![put("secret/new", "")])));
    denied(&mut model, Request::Txn(always(vec![read(all_of("sec"))])));
    denied(&mut model, Request::Txn(when(vec![created("secret/key", 1)], vec![], vec![])));
    denied(&mut model, Request::Txn(when(vec![], vec![], vec![delete("secret/key")])));
    denied(&mut model, Request::Txn(always(vec![Op::Txn(always(vec![delete("secret/key")]))])));
    denied(&mut model, Request::RenewLease { lease });
    denied(&mut model, Request::RevokeLease { lease });
    let spec = WatchSpec { span: Span::Prefix("secret/".into()), from_revision: 0, puts: false };
    assert_eq!(model.watch(&spec).unwrap_err().class, FailureClass::PermissionDenied);

    model.do_ops(vec![put("open", "1"), read(all_of("open"))]);
    model.deny(None);
    model.do_delete("secret/key");
}

#[test]
fn answers_carry_the_term_that_was_set() {
    let mut model = Model::new();
    model.set_term(7);
    let answer = model.execute(NOW, &Request::GrantLease { ttl: secs(5) }).unwrap();
    assert_eq!((answer.term, answer.revision), (7, 1));
}
