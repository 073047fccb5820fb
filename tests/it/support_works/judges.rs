//! The witnesses record what happens, and the oracles find violations.

use std::time::Duration;

use super::SOON;
use crate::support::oracle::{Interval, Oracle, now};
use crate::support::process::{self, alone};
use crate::support::witness::{What, Witness};
use crate::support::{Etcd, Raw, fresh_root, shared, wait, within};

#[test]
fn a_witness_records_every_event() {
    let root = fresh_root("witness");
    let witness = Witness::of(shared().access(), &root);
    let raw = Raw::connect(shared().access());
    let key = format!("{root}/key");
    let lease = raw.grant(60);
    let put = raw.put(&key, "value", lease);
    raw.revoke(lease);
    let deleted = witness.wait_for_delete(SOON, &key);
    assert!(deleted.revision > put);
    let seen = witness.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].what, What::Put { value: b"value".to_vec(), lease, create_revision: put });
    assert!(seen[0].at <= seen[1].at);
}

#[test]
fn raw_requests_take_effect() {
    let raw = Raw::connect(shared().access());
    let root = fresh_root("raw");
    let first = raw.put(&format!("{root}/b"), "1", 0);
    raw.put(&format!("{root}/a"), "2", 0);
    let keys = raw.keys(&root);
    assert_eq!(keys.len() as u64, raw.count(&root));
    assert!(keys[0].key.ends_with("/a") && keys[1].create_revision == first);
    assert!(raw.revision() > first);
    assert!(raw.delete(&format!("{root}/a")) && !raw.delete(&format!("{root}/a")));
    assert_eq!(raw.delete_prefix(&root), 1);
    let lease = raw.grant(60);
    assert!(raw.ttl(lease).unwrap() <= Duration::from_secs(60));
    raw.revoke(lease);
    assert_eq!(raw.ttl(lease), None);
}

#[test]
fn etcd_counts_the_requests_that_were_sent() {
    let etcd = Etcd::start();
    let raw = Raw::connect(etcd.access());
    let before = etcd.requests("Put");
    for _ in 0..7 {
        raw.put("/key", "", 0);
    }
    assert_eq!(etcd.requests("Put") - before, 7);
    assert_eq!(etcd.metric("etcd_server_is_leader"), 1.0);
}

#[test]
fn an_oracle_accepts_one_holder_at_a_time() {
    let oracle = Oracle::new();
    for token in 1..=3 {
        drop(oracle.enter("a", token));
    }
    let other = oracle.enter("b", 1);
    drop(oracle.enter("a", 4));
    drop(other);
    oracle.judge();
    assert_eq!((oracle.count(), oracle.tokens("a")), (5, vec![1, 2, 3, 4]));
}

#[test]
fn an_oracle_finds_two_holders_and_a_token_that_does_not_grow() {
    let oracle = Oracle::new();
    let first = oracle.enter("a", 1);
    drop(oracle.enter("a", 2));
    drop(first);
    drop(oracle.enter("a", 2));
    let violations = oracle.violations();
    assert!(violations.len() == 2, "{violations:?}");
    assert!(violations[0].starts_with("held twice") && violations[1].starts_with("token not greater"));
}

#[test]
fn an_interval_survives_its_conversion_to_text() {
    let hold = Interval { name: "a b".into(), token: 7, from: now(), to: Some(now()), who: "child".into() };
    assert_eq!(hold.to_string().parse(), Ok(hold.clone()));
    let lasting = Interval { to: None, ..hold };
    assert_eq!(lasting.to_string().parse(), Ok(lasting));
    assert!("7 1 x child a".parse::<Interval>().is_err());
}

#[test]
#[should_panic(expected = "hangs for more than")]
fn an_action_that_hangs_fails_the_test() {
    within(Duration::from_millis(10), "this", std::thread::park);
}

#[test]
fn a_process_of_its_own_has_no_threads_of_other_tests() {
    alone("support_works::judges::a_process_of_its_own_has_no_threads_of_other_tests", SOON, || {
        assert_eq!(wait::threads_named("raw-etcd"), 0);
        let raw = Raw::connect(shared().access());
        assert_eq!(wait::threads_named("raw-etcd"), 1);
        assert!(wait::cpu_time_of_threads("raw-etcd") > Duration::ZERO);
        drop(raw);
        assert_eq!(wait::threads_named("raw-etcd"), 0);
        assert!(wait::cpu_time() > Duration::ZERO && wait::resident_bytes() > 0);
    });
}

#[test]
fn parent_and_child_talk() {
    if let Some(role) = process::role() {
        while let Some(line) = role.hear() {
            role.say(&format!("{}: {line}", role.name()));
        }
        return;
    }
    let mut echo = process::Process::spawn("support_works::judges::parent_and_child_talk", "echo");
    echo.say("hello");
    assert_eq!(echo.hear(SOON), "echo: hello");
    echo.stop();
    echo.say("anybody?");
    echo.cont();
    assert_eq!(echo.hear(SOON), "echo: anybody?");
    echo.finish(SOON);
}
