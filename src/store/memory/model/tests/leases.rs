//! Leases and their expiry.

use super::*;

fn after(duration: Duration) -> Time {
    NOW + duration
}

#[test]
fn a_ttl_is_rounded_up_to_seconds_and_raised_to_the_least() {
    let mut model = Model::new();
    let mut granted = |ttl| match model.execute(NOW, &Request::GrantLease { ttl }).map(|r| r.answer) {
        Ok(Answer::LeaseGranted { ttl, .. }) => Ok(ttl),
        Ok(other) => panic!("not a grant: {other:?}"),
        Err(failure) => Err(failure.class),
    };
    assert_eq!(granted(Duration::from_millis(4001)), Ok(secs(5)));
    assert_eq!(granted(secs(4)), Ok(secs(4)));
    assert_eq!(granted(Duration::ZERO), Ok(secs(2)));
    assert_eq!(granted(secs(9_000_000_000)), Ok(secs(9_000_000_000)));
    assert_eq!(granted(secs(9_000_000_001)), Err(FailureClass::Refused));
    assert_eq!(granted(Duration::MAX), Err(FailureClass::Refused));
}

#[test]
fn no_lease_id_is_used_twice() {
    let mut model = Model::new();
    let first = model.do_grant(secs(5));
    assert!(first > 0);
    model.expire_lease(first);
    assert!(model.do_grant(secs(5)) > first);
}

#[test]
fn an_ending_lease_deletes_its_keys_by_name_in_one_revision() {
    let mut model = Model::new();
    let [one, other] = [model.do_grant(secs(5)), model.do_grant(secs(5))];
    model.do_ops(vec![
        put_with("b", "", one),
        put_with("a", "", one),
        put_with("c", "", other),
        put("d", ""),
    ]);
    let (watcher, _) =
        model.watch(&WatchSpec { span: Span::Prefix("".into()), from_revision: 0, puts: false }).unwrap();

    let answer = model.execute(NOW, &Request::RevokeLease { lease: one }).unwrap();
    assert_eq!((answer.revision, answer.answer), (3, Answer::LeaseRevoked));
    let deleted = Notice::Deleted { keys: vec!["a".into(), "b".into()], revision: 3 };
    assert_eq!(model.notices(), [(watcher, deleted)]);
    assert_eq!(model.names_at(0), ["c", "d"]);
    assert_eq!(model.class(Request::RevokeLease { lease: one }), FailureClass::LeaseGone);
    assert_eq!(model.leases().collect::<Vec<_>>(), [other]);
}

#[test]
fn a_key_belongs_only_to_the_lease_of_its_last_put() {
    let mut model = Model::new();
    let [one, other] = [model.do_grant(secs(5)), model.do_grant(secs(5))];
    model.do_ops(vec![put_with("a", "", one), put_with("b", "", one), put_with("c", "", one)]);
    model.do_ops(vec![put_with("a", "", other), put("b", "")]);
    model.do_delete("c");
    model.do_put("c", "");
    model.expire_lease(one);
    assert_eq!(model.names_at(0), ["a", "b", "c"]);
    model.expire_lease(other);
    assert_eq!(model.names_at(0), ["b", "c"]);
}

#[test]
fn a_put_with_a_lease_that_is_gone_fails_the_transaction_as_a_whole() {
    let mut model = Model::new();
    model.do_put("a", "");
    let dead = put_with("b", "", 42);
    let txn = always(vec![put("c", ""), Op::Txn(always(vec![dead.clone()]))]);
    assert_eq!(model.class(Request::Txn(txn)), FailureClass::LeaseGone);
    assert_eq!((model.names_at(0), model.revision()), (vec!["a".into()], 2));

    // The branch that does not run may name any lease.
    model.do_txn(when(vec![], vec![put("c", "")], vec![dead]));
    assert_eq!(model.names_at(0), ["a", "c"]);
}

#[test]
fn a_lease_is_due_after_its_ttl_and_exists_until_it_is_ended() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(5));
    model.do_ops(vec![put_with("a", "", lease)]);
    assert_eq!(model.next_expiry(), Some(after(secs(5))));
    assert_eq!(model.expire_due(after(Duration::from_millis(4999))), Vec::<crate::kv::LeaseId>::new());
    // Due, but not ended: keys can still be attached.
    model.execute(after(secs(6)), &Request::Txn(always(vec![put_with("b", "", lease)]))).unwrap();
    assert_eq!(model.expire_due(after(secs(6))), [lease]);
    assert_eq!((model.names_at(0), model.revision()), (vec![], 4));
    assert_eq!(model.next_expiry(), None);
}

#[test]
fn due_leases_end_one_by_one_the_longest_overdue_first() {
    let mut model = Model::new();
    let [long, short] = [model.do_grant(secs(9)), model.do_grant(secs(5))];
    model.do_ops(vec![put_with("long", "", long), put_with("short", "", short)]);
    let (_, revision) =
        model.watch(&WatchSpec { span: Span::Prefix("".into()), from_revision: 0, puts: false }).unwrap();
    assert_eq!(model.expire_due(after(secs(9))), [short, long]);
    let told: Vec<_> = model.notices().into_iter().map(|(_, notice)| notice).collect();
    assert_eq!(
        told,
        [
            Notice::Deleted { keys: vec!["short".into()], revision: revision + 1 },
            Notice::Deleted { keys: vec!["long".into()], revision: revision + 2 }
        ]
    );
}

#[test]
fn a_renewal_restarts_the_ttl_and_fails_for_a_due_lease() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(5));
    model.do_ops(vec![put_with("a", "", lease)]);
    let renew = Request::RenewLease { lease };
    let answer = model.execute(after(secs(3)), &renew).unwrap();
    assert_eq!((answer.answer, answer.revision), (Answer::LeaseRenewed { ttl: secs(5) }, 2));
    assert_eq!(model.next_expiry(), Some(after(secs(8))));

    assert_eq!(model.execute(after(secs(8)), &renew).unwrap_err().class, FailureClass::LeaseGone);
    assert_eq!(model.get("a"), None);
    assert_eq!(model.class(renew), FailureClass::LeaseGone);
}

#[test]
fn the_remaining_time_is_in_whole_seconds() {
    let mut model = Model::new();
    let lease = model.do_grant(secs(5));
    let mut left = |at, lease| match model.execute(at, &Request::LeaseTimeToLive { lease }).unwrap().answer {
        Answer::LeaseTimeToLive { remaining } => remaining,
        other => panic!("not a time to live: {other:?}"),
    };
    assert_eq!(left(NOW, lease), Some(secs(5)));
    assert_eq!(left(after(Duration::from_millis(1)), lease), Some(secs(4)));
    assert_eq!(left(after(secs(7)), lease), Some(Duration::ZERO));
    assert_eq!(left(NOW, lease + 1), None);
}

#[test]
fn a_new_leader_gives_every_lease_its_full_ttl() {
    let mut model = Model::new();
    let [short, long] = [model.do_grant(secs(5)), model.do_grant(secs(60))];
    model.extend_all_leases(after(secs(6)));
    assert_eq!(model.next_expiry(), Some(after(secs(11))));
    assert_eq!(model.expire_due(after(secs(65))), [short]);
    assert_eq!(model.expire_due(after(secs(66))), [long]);
}
