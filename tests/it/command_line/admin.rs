//! What administrators ask: of locks that this library holds, and of those of `etcdctl lock`, which are Go's.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::program;
use crate::support::etcdctl::Etcdctl;
use crate::support::manager::{connect, enqueue, lock, wait_for_contenders};
use crate::support::program::{Ended, Program};
use crate::support::{Raw, SOON, eventually, shared};

fn lines(ended: &Ended) -> Vec<Value> {
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "{ended:?}");
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The line of a contender, with those fields that any contender has some value of.
fn masked(mut line: Value) -> Value {
    for field in ["created_at", "lease_id", "pid", "thread", "token", "ttl_remaining"] {
        if !line[field].is_null() {
            line[field] = json!("?");
        }
    }
    line
}

#[test]
fn programs_get_one_line_of_json_for_each_contender() {
    let (program, root) = program("admin");
    let manager = connect(shared().access(), &root);
    let _guards = [lock(&manager, "b/2"), lock(&manager, "a"), lock(&manager, "b/1")];
    let names = |prefix: &[&str]| -> Vec<Value> {
        let lines = lines(&program.run(&[&["list"], prefix].concat()));
        lines.iter().map(|line| line["key"].clone()).collect()
    };
    assert_eq!(names(&[]), ["a", "b/1", "b/2"]);
    assert_eq!(names(&["b/"]), ["b/1", "b/2"]);

    let other = connect(shared().access(), &root);
    let _pending = enqueue(&other, "a");
    wait_for_contenders(&Raw::connect(shared().access()), &format!("{root}/a/"), 2);
    let queue = lines(&program.run(&["queue", "a"]));
    let info = manager.lock_info("a").unwrap().unwrap();
    assert_eq!(queue[0]["token"], info.token.as_u64());
    let owner = info.owner.unwrap();
    let expected = |state: &str, waiters: u32| {
        json!({ "key": "a", "state": state, "owner": owner, "pid": "?", "thread": "?", "created_at": "?",
            "lease_id": "?", "ttl_remaining": "?", "token": "?", "waiters": waiters })
    };
    let queue: Vec<Value> = queue.into_iter().map(masked).collect();
    assert_eq!(queue.len(), 2);
    let known = |line: &Value, expected: &Value| {
        let (line, expected) = (line.as_object().unwrap(), expected.as_object().unwrap());
        expected.iter().all(|(field, value)| &line[field] == value)
    };
    assert!(known(&queue[0], &expected("held", 1)), "{queue:?}");
    assert!(known(&queue[1], &expected("waiting", 0)) || queue[1]["ttl_remaining"].is_null(), "{queue:?}");
    assert_eq!(masked(lines(&program.run(&["info", "a"])).remove(0)), queue[0]);
}

#[test]
fn a_token_that_is_over_evicts_nobody() {
    let (program, root) = program("admin");
    let manager = connect(shared().access(), &root);
    let old = lock(&manager, "jobs").token().to_string();
    let guard = lock(&manager, "jobs");
    let ended = program.run(&["unlock", "jobs", "--token", &old, "--yes"]);
    assert_eq!(ended.code, 75, "{ended:?}");
    assert!(guard.is_held());
    let token = guard.token().to_string();
    let ended = program.run(&["unlock", "jobs", "--token", &token]);
    assert!(ended.code == 64 && ended.stderr.contains("--yes"), "no terminal to ask on: {ended:?}");
    let evicted = lines(&program.run(&["unlock", "jobs", "--token", &token, "--yes"]));
    assert_eq!(evicted[0]["token"], guard.token().as_u64());
    assert!(manager.lock_info("jobs").unwrap().is_none());
}

/// Purpose: Go programs are in the same queues, so every command must work on their locks.
#[test]
fn every_command_works_on_a_lock_that_etcdctl_holds() {
    let (program, root) = program("admin");
    let ctl = Etcdctl::new(shared().access());
    let theirs = ctl.lock_process(&format!("{root}/jobs"));
    let token = Raw::connect(shared().access()).get(theirs.key()).unwrap().create_revision;

    let foreign = json!({ "key": "jobs", "state": "held", "owner": null, "pid": null, "thread": null,
        "created_at": null, "lease_id": "?", "ttl_remaining": "?", "token": "?", "waiters": 0 });
    for args in [&["list"][..], &["info", "jobs"], &["queue", "jobs"]] {
        let line = lines(&program.run(args)).remove(0);
        assert_eq!(line["token"], token);
        let line = masked(line);
        let differs = |(field, value): (&String, &Value)| line[field] != *value;
        assert!(!foreign.as_object().unwrap().iter().any(differs), "{args:?}: {line}");
    }
    let table = program.run(&["info", "jobs", "--table"]).stdout;
    assert!(table.contains("(foreign)"), "{table}");
    for args in [
        &["wait", "jobs", "-n"][..],
        &["wait", "jobs", "-w", "100ms"],
        &["hold", "jobs", "-n"],
        &["run", "jobs", "-n", "--", "true"],
    ] {
        let ended = program.run(args);
        assert!(ended.code == 75 && ended.stderr.contains("a foreign client"), "{ended:?}");
    }
    let mut wait = program.start(&["wait", "jobs"]);
    let mut run = program.start(&["run", "jobs", "--", "sh", "-c", "exit 7"]);
    wait_for_contenders(&Raw::connect(shared().access()), &format!("{root}/jobs/"), 2);
    theirs.release();
    assert_eq!(run.code(), 7);
    assert_eq!(wait.code(), 0);

    for scope in [&[][..], &["--session"]] {
        let theirs = ctl.lock_process(&format!("{root}/jobs"));
        let evicted = lines(&program.run(&[&["unlock", "jobs", "--any", "--yes"], scope].concat()));
        assert_eq!(evicted[0]["owner"], Value::Null);
        assert!(Raw::connect(shared().access()).get(theirs.key()).is_none());
    }
}

#[test]
fn check_reports_the_members_their_releases_the_role_and_the_floor_of_the_ttl() {
    let (program, root) = program("admin");
    let findings = lines(&program.run(&["check"]));
    let text = |subject: &str| {
        let finding = findings.iter().find(|finding| finding["subject"] == subject);
        finding.unwrap_or_else(|| panic!("no {subject} in {findings:#?}"))["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let version = shared().version();
    assert!(text(&shared().endpoints()[0]).starts_with(&format!("etcd {version}, the leader, ")));
    assert!(text("TTL floor").starts_with("2s: "));
    assert!(text("role").contains(&root) && text("commit latency").contains("p99"));
    assert_eq!(Raw::connect(shared().access()).count(&root), 0, "it leaves nothing");

    // One endpoint out of reach is no failure as long as locks can be taken.
    let gone = "http://127.0.0.1:1".to_owned();
    let partly = Program::at(&[gone.clone(), shared().endpoints()[0].clone()], &root);
    let findings = lines(&partly.run(&["check"]));
    assert!(findings.iter().any(|finding| finding["level"] == "warn" && finding["subject"] == *gone));
    let ended = Program::at(&[gone], &root).run(&["check", "--table", "--timeout", "1s"]);
    assert!(ended.code == 69 && ended.stdout.contains("FAIL  role: etcd is unavailable"), "{ended:?}");
}

#[test]
fn bench_measures_locks_and_hand_overs_and_leaves_nothing() {
    let (program, root) = program("admin");
    let rows = lines(&program.run(&["bench", "--threads", "4", "--time", "300ms"]));
    assert_eq!(rows.len(), 4);
    for row in rows {
        let number = |field: &str| row[field].as_f64().unwrap();
        assert!(number("per_second") > 1.0 && number("p50_ms") <= number("p99_ms"), "{row}");
    }
    assert_eq!(Raw::connect(shared().access()).count(&root), 0);
}

/// Purpose: whatever it writes has a lease, so that a signal leaves nothing in etcd for ever.
#[test]
fn bench_writes_nothing_that_outlives_its_leases() {
    let (program, root) = program("admin");
    let raw = Raw::connect(shared().access());
    let mut running = program.start(&["bench", "--threads", "1", "--time", "600s"]);
    // Beside the root are keys that only begin like it.
    eventually(SOON, "it puts", || raw.keys(&root).iter().any(|kv| kv.mod_revision > kv.create_revision));
    running.signal(Signal::TERM);
    running.code();
    let keys = raw.keys(&root);
    assert!(keys.iter().all(|kv| kv.lease != 0), "{keys:?}");
}

/// Purpose: etcdctl's own conditions can name the hold, so a script can fence its writes.
#[test]
fn a_script_can_fence_its_writes_by_key_and_token() {
    let (program, root) = program("admin");
    let ctl = Etcdctl::new(shared().access());
    let fenced = |program: &Program, rev: &str| {
        let write = format!(
            "printf 'create(\"%s\") = \"%s\"\\n\\nput {root}-data new\\n\\n\\n' \"$ETCD_LOCK_KEY\" \"{rev}\" | {} txn",
            etcd_fixture::program("ETCDCTL_BIN", "etcdctl").display()
        );
        let settings = program
            .clone()
            .with("ETCDCTL_API", "3")
            .with("ETCDCTL_ENDPOINTS", shared().endpoints().join(","));
        settings.run(&["run", "jobs", "--", "sh", "-c", &write]).stdout
    };
    assert!(fenced(&program, "1").contains("FAILURE"));
    assert!(fenced(&program, "$ETCD_LOCK_REV").contains("SUCCESS"));
    assert_eq!(ctl.get(&format!("{root}-data")).as_deref(), Some("new"));
}
