//! Transactions.

use super::*;

fn nested(then: Vec<Op>) -> Op {
    Op::Txn(always(then))
}

fn prefix(text: &str, field: Field, revision: Revision) -> Compare {
    Compare::equal(Span::Prefix(text.into()), field, revision)
}

/// Whether the compares hold.
fn holds(model: &mut Model, compares: Vec<Compare>) -> bool {
    model.do_txn(when(compares, vec![], vec![])).succeeded
}

#[test]
fn a_compare_takes_a_missing_key_for_one_of_revision_0() {
    let mut model = Model::new();
    model.do_put("a/1", "");
    model.do_put("a/1", "");
    assert!(holds(&mut model, vec![created("a/2", 0)]));
    assert!(!holds(&mut model, vec![created("a/2", 2)]));
    assert!(holds(&mut model, vec![created("a/1", 2), prefix("a/1", Field::ModRevision, 3)]));
    assert!(!holds(&mut model, vec![created("a/1", 0)]));
    assert!(holds(&mut model, vec![]));
}

#[test]
fn a_compare_of_a_range_must_hold_for_every_key_and_an_empty_range_is_a_key_of_revision_0() {
    let mut model = Model::new();
    assert!(holds(&mut model, vec![prefix("a/", Field::CreateRevision, 0)]));
    model.do_ops(vec![put("a/1", ""), put("a/2", "")]);
    assert!(!holds(&mut model, vec![prefix("a/", Field::CreateRevision, 0)]));
    assert!(holds(&mut model, vec![prefix("a/", Field::CreateRevision, 2)]));
    model.do_put("a/3", "");
    assert!(!holds(&mut model, vec![prefix("a/", Field::CreateRevision, 2)]));
    assert!(!holds(&mut model, vec![created("a/1", 2), prefix("a/", Field::CreateRevision, 2)]));
}

#[test]
fn all_compares_are_evaluated_before_any_operation() {
    let mut model = Model::new();
    let free = |key| when(vec![created(key, 0)], vec![put(&format!("{key}-taken"), "")], vec![]);
    let inner = Txn { then: vec![Op::Txn(free("a"))], ..Txn::default() };
    let answer = model.do_ops(vec![put("a", ""), Op::Txn(free("a")), Op::Txn(free("b")), put("b", "")]);
    assert_eq!(answer.results.len(), 4);
    assert_eq!(model.names_at(0), ["a", "a-taken", "b", "b-taken"]);

    let answer = model.do_ops(vec![delete("a"), Op::Txn(inner)]);
    let OpResult::Txn(middle) = &answer.results[1] else { panic!("{answer:?}") };
    assert_eq!(middle.results, [OpResult::Txn(TxnAnswer { succeeded: false, results: vec![] })]);
}

#[test]
fn a_read_sees_the_operations_before_it() {
    let mut model = Model::new();
    model.do_put("a", "");
    let answer = model.do_ops(vec![
        read(all_of("")),
        put("b", ""),
        nested(vec![put("c", ""), delete("a")]),
        read(all_of("")),
        read(Range { at_revision: 2, ..all_of("") }),
    ]);
    assert_eq!(names(&found(&answer, 0).kvs), ["a"]);
    assert_eq!(names(&found(&answer, 3).kvs), ["b", "c"]);
    assert_eq!(found(&answer, 3).kvs[0].create_revision, 3);
    assert_eq!(names(&found(&answer, 4).kvs), ["a"]);
    let deleted = OpResult::Txn(TxnAnswer {
        succeeded: true,
        results: vec![OpResult::Put, OpResult::Deleted { count: 1 }],
    });
    assert_eq!(answer.results[2], deleted);
}

#[test]
fn all_writes_of_a_transaction_share_its_revision() {
    let mut model = Model::new();
    model.do_ops(vec![put("a", ""), nested(vec![put("b", ""), nested(vec![put("c", "")])])]);
    assert_eq!(model.revision(), 2);
    for key in ["a", "b", "c"] {
        let kv = model.get(key).unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision), (2, 2));
    }
}

#[test]
fn the_revision_that_a_transaction_makes_cannot_be_read_in_it() {
    let mut model = Model::new();
    let txn = always(vec![put("a", ""), read(Range { at_revision: 2, ..all_of("") })]);
    assert_eq!(model.class(Request::Txn(txn.clone())), FailureClass::Compacted);
    assert_eq!((model.revision(), model.names_at(0)), (1, vec![]));
    // A read in a branch that does not run is not checked.
    model.do_txn(when(vec![], vec![put("a", "")], txn.then));
}

#[test]
fn a_missing_lease_is_reported_before_an_unreadable_revision() {
    let mut model = Model::new();
    let txn = always(vec![read(Range { at_revision: 9, ..all_of("") }), put_with("a", "", 42)]);
    assert_eq!(model.class(Request::Txn(txn)), FailureClass::LeaseGone);
}

#[test]
fn no_key_is_put_twice_nor_put_and_deleted() {
    let mut model = Model::new();
    let mut refused = |then| {
        let class = model.execute(NOW, &Request::Txn(always(then))).map_err(|failure| failure.class);
        class.map_or_else(|class| class == FailureClass::Refused, |_| false)
    };
    assert!(refused(vec![put("a", ""), put("a", "")]));
    assert!(refused(vec![put("a", ""), delete("a")]));
    assert!(refused(vec![delete("a"), put("a", "")]));
    assert!(refused(vec![nested(vec![put("a", "")]), put("a", "")]));
    assert!(refused(vec![nested(vec![put("a", "")]), delete("a")]));
    assert!(refused(vec![nested(vec![delete("a")]), put("a", "")]));
    assert!(refused(vec![nested(vec![put("a", "")]), nested(vec![put("a", "")])]));
    assert!(refused(vec![nested(vec![delete("a")]), nested(vec![put("a", "")])]));
    // Both branches count, although only one can run.
    let never = Txn { otherwise: vec![put("a", "")], ..Txn::default() };
    assert!(refused(vec![put("a", ""), Op::Txn(never)]));

    assert!(!refused(vec![delete("a"), delete("a")]));
    assert!(!refused(vec![Op::Txn(when(vec![], vec![put("a", "")], vec![put("a", "")]))]));
    assert!(!refused(vec![Op::Txn(when(vec![], vec![put("a", "")], vec![delete("a")]))]));
    // The branch that does not run is checked, too.
    let class = model.class(Request::Txn(when(vec![], vec![], vec![put("a", ""), put("a", "")])));
    assert_eq!(class, FailureClass::Refused);
}

#[test]
fn a_key_put_and_deleted_in_one_transaction_is_never_visible_but_its_deletion_is_reported() {
    let mut model = Model::new();
    let (watcher, _) =
        model.watch(&WatchSpec { span: Span::Prefix("".into()), from_revision: 0, puts: false }).unwrap();
    let answer = model.do_ops(vec![nested(vec![put("a", "")]), nested(vec![delete("a")]), read(all_of(""))]);
    assert_eq!(found(&answer, 2).count, 0);
    assert_eq!((model.revision(), model.names_at(2)), (2, vec![]));
    assert_eq!(model.notices(), [(watcher, Notice::Deleted { keys: vec!["a".into()], revision: 2 })]);
}

#[test]
fn a_transaction_is_as_long_as_its_longest_list_and_nesting_adds_up() {
    let mut model = Model::with(Limits { max_txn_ops: 4, ..Limits::default() }, 1);
    let reads = |count| vec![read(all_of("")); count];
    let mut fits = |txn: Txn| match model.execute(NOW, &Request::Txn(txn)) {
        Ok(_) => true,
        Err(failure) => {
            assert_eq!(failure.class, FailureClass::TooManyOperations);
            false
        }
    };
    assert!(fits(when(vec![created("a", 0); 4], reads(4), reads(4))));
    assert!(!fits(when(vec![created("a", 0); 5], vec![], vec![])));
    assert!(!fits(when(vec![], vec![], reads(5))));
    // One operation, which leaves three for its nested transactions.
    assert!(fits(always(vec![nested(reads(3))])));
    assert!(!fits(always(vec![nested(reads(4))])));
    assert!(fits(always(vec![nested(reads(1)), nested(reads(1)), nested(reads(1))])));
    assert!(!fits(always(vec![nested(reads(2)), nested(reads(2)), nested(reads(2))])));
    assert!(!fits(when(vec![], vec![], vec![nested(vec![nested(vec![nested(reads(2))])])])));
    // Compares count, too.
    assert!(!fits(when(vec![created("a", 0); 4], vec![nested(reads(1))], vec![])));
}

#[test]
fn the_default_limit_admits_127_nested_transactions_of_one_operation() {
    let mut model = Model::new();
    let batch = |count| always((0..count).map(|n| nested(vec![put(&format!("{n}"), "")])).collect());
    model.do_txn(batch(127));
    assert_eq!(model.class(Request::Txn(batch(128))), FailureClass::TooManyOperations);
}

#[test]
fn a_write_needs_a_key() {
    let mut model = Model::new();
    assert_eq!(model.class(Request::Delete { key: "".into() }), FailureClass::Refused);
    assert_eq!(model.class(Request::Txn(always(vec![put("", "")]))), FailureClass::Refused);
}
