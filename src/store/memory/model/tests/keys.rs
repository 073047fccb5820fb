//! Revisions, reads and history.

use super::*;

#[test]
fn an_empty_store_is_at_revision_1_and_the_first_write_makes_2() {
    let mut model = Model::new();
    assert_eq!(model.revision(), 1);
    assert_eq!(model.do_put("a", ""), 2);
    assert_eq!(Model::with(Limits::default(), 100).do_put("a", ""), 101);
}

#[test]
fn a_request_without_a_write_makes_no_revision() {
    let mut model = Model::new();
    model.do_put("a", "");
    assert_eq!(model.do_delete("missing"), 2);
    model.do_ops(vec![]);
    model.do_ops(vec![delete("missing"), read(all_of("")), Op::Txn(Txn::default())]);
    model.do_txn(when(vec![created("a", 0)], vec![put("b", "")], vec![]));
    let lease = model.do_grant(secs(5));
    model.execute(NOW, &Request::RevokeLease { lease }).unwrap();
    assert_eq!(model.revision(), 2);
}

#[test]
fn a_put_retains_the_create_revision_unless_the_key_was_deleted() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(5));
    model.do_put("a", "1");
    model.do_ops(vec![put_with("a", "2", lease)]);
    let kv = model.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.lease, &kv.value[..]), (2, 3, lease, &b"2"[..]));
    assert_eq!(model.do_delete("a"), 4);
    assert_eq!(model.get("a"), None);
    model.do_put("a", "3");
    let kv = model.get("a").unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.lease), (5, 5, 0));
}

#[test]
fn a_range_is_ordered_limited_and_counted() {
    let mut model = Model::new();
    for key in ["n/b", "n/c", "n/a", "other"] {
        model.do_put(key, "v");
    }
    model.do_put("n/b", "again");
    let read = |range: Range| model.read(&range).unwrap();

    assert_eq!(names(&read(all_of("n/")).kvs), ["n/a", "n/b", "n/c"]);
    let oldest = read(Range { order: Order::OldestFirst, limit: 2, ..all_of("n/") });
    assert_eq!((names(&oldest.kvs), oldest.count), (vec!["n/b".into(), "n/c".into()], 3));
    let newest = read(Range { order: Order::NewestFirst, limit: 1, ..all_of("n/") });
    assert_eq!((names(&newest.kvs), newest.count), (vec!["n/a".into()], 3));

    // The predecessor of n/a in the queue; the count is still the whole span's.
    let before = read(Range { order: Order::NewestFirst, limit: 1, max_create_revision: 3, ..all_of("n/") });
    assert_eq!((names(&before.kvs), before.count), (vec!["n/c".into()], 3));

    let bare = read(Range { keys_only: true, ..all_of("n/b") });
    assert_eq!((&bare.kvs[0].value[..], bare.kvs[0].mod_revision), (&b""[..], 6));
    let between = Range { span: Span::Between("n/b".into(), "o".into()), ..all_of("") };
    assert_eq!(names(&read(between).kvs), ["n/b", "n/c"]);
    let turned_round = Range { span: Span::Between("o".into(), "n".into()), ..all_of("") };
    assert_eq!(read(turned_round), RangeResult::default());
}

#[test]
fn keys_of_one_create_revision_are_ordered_by_name() {
    let mut model = Model::new();
    model.do_put("d", "");
    model.do_ops(vec![put("c", ""), put("a", ""), put("b", "")]);
    let by = |order| names(&model.read(&Range { order, ..all_of("") }).unwrap().kvs);
    assert_eq!(by(Order::OldestFirst), ["d", "a", "b", "c"]);
    assert_eq!(by(Order::NewestFirst), ["a", "b", "c", "d"]);
}

#[test]
fn the_past_can_be_read() {
    let mut model = Model::new();
    model.do_put("b", "1"); // 2
    model.do_put("a", "1"); // 3
    model.do_put("b", "2"); // 4
    model.do_delete("b"); // 5
    model.do_put("b", "3"); // 6

    let past = |at| Range { at_revision: at, ..all_of("") };
    assert_eq!(model.names_at(1), [""; 0]);
    assert_eq!(model.names_at(2), ["b"]);
    assert_eq!(model.names_at(5), ["a"]);
    assert_eq!(model.names_at(6), ["a", "b"]);
    let values = |at| {
        let b = Range { span: Span::Key("b".into()), ..past(at) };
        model.read(&b).unwrap().kvs.into_iter().map(|kv| (kv.value[0], kv.create_revision)).next()
    };
    assert_eq!(
        [values(3), values(4), values(5), values(6)],
        [Some((b'1', 2)), Some((b'2', 2)), None, Some((b'3', 6))]
    );
    // The count is that of the same revision.
    assert_eq!(model.read(&Range { limit: 1, ..past(4) }).unwrap().count, 2);
}

#[test]
fn a_future_revision_cannot_be_read() {
    let mut model = Model::new();
    let at_3 = Request::Txn(always(vec![read(Range { at_revision: 3, ..all_of("") })]));
    model.do_put("a", "");
    assert_eq!(model.class(at_3.clone()), FailureClass::Compacted);
    model.do_put("a", "");
    model.do_put("a", "");
    assert_eq!(model.execute(NOW, &at_3).unwrap().revision, 4);
}

#[test]
fn revisions_before_the_compacted_one_cannot_be_read() {
    let mut model = Model::new();
    model.do_put("a", ""); // 2
    model.do_delete("a"); // 3
    model.do_put("b", ""); // 4
    model.do_put("c", ""); // 5
    model.do_delete("b"); // 6
    model.compact(4).unwrap();

    let at_3 = Request::Txn(always(vec![read(Range { at_revision: 3, ..all_of("") })]));
    assert_eq!(model.class(at_3), FailureClass::Compacted);
    assert_eq!(model.names_at(4), ["b"]);
    assert_eq!(model.names_at(5), ["b", "c"]);
    assert_eq!(model.names_at(0), ["c"]);
    assert_eq!(model.compact(4).unwrap_err().class, FailureClass::Compacted);
    assert_eq!(model.compact(7).unwrap_err().class, FailureClass::Compacted);
    model.compact(6).unwrap();
    assert_eq!(model.names_at(6), ["c"]);
}

#[test]
fn compaction_leaves_no_history_behind() {
    let mut model = Model::new();
    for n in 0..100 {
        model.do_ops(vec![put(&format!("k{n}"), "")]);
        model.do_delete(&format!("k{n}"));
    }
    model.compact(model.revision()).unwrap();
    assert_eq!(model.keys.history(), 1);
}
