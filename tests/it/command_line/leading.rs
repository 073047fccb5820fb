//! `lead`: a command that runs while this program leads; `watch`: who leads.

use etcd_lock::ForceUnlock;
use rustix::process::Signal;
use serde_json::Value;

use super::program;
use crate::support::manager::{connect, lock};
use crate::support::{SOON, eventually, shared};

/// Purpose: a loss costs a term, not the candidate.
#[test]
fn after_a_loss_the_command_is_killed_and_the_program_campaigns_again() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let command = ["--", "sh", "-c", "trap '' TERM; read line && exit 6"];
    let args = [&["lead", "jobs", "--value", "10.0.0.7:80", "--status-fd", "2"], &command[..]].concat();
    let mut running = program.start(&args);
    let mut last = 0;
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let pid = running.event("started")["pid"].as_i64().unwrap();
        let info = manager.lock_info("jobs").unwrap().unwrap();
        assert_eq!(info.note.as_deref(), Some("10.0.0.7:80"));
        assert!(info.token.as_u64() > last);
        last = info.token.as_u64();
        manager.force_unlock("jobs", scope).unwrap();
        running.event("lost");
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the command of the term is dead");
    }
    running.event("started");
    std::io::Write::write_all(&mut running.stdin(), b"\n").unwrap();
    assert_eq!(running.code(), 6, "a command that ends by itself ends the candidacy");
    assert!(manager.lock_info("jobs").unwrap().is_none());
}

#[test]
fn a_signal_ends_a_campaign() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let _guard = lock(&manager, "jobs");
    let mut running = program.start(&["lead", "jobs", "--value", "me", "--status-fd", "2", "--", "true"]);
    running.event("waiting");
    running.signal(Signal::TERM);
    assert_eq!(running.code(), 143);
    assert_eq!(manager.queue("jobs").unwrap().len(), 1);
}

/// Purpose: a loss must not swallow the wish to end, for which a service manager would send SIGKILL later.
#[test]
fn a_signal_that_the_command_has_yet_to_heed_when_the_lock_is_lost_ends_the_program() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let command = "trap 'echo told' TERM; echo ready; while :; do read line; done";
    let mut running = program.start(&["lead", "jobs", "--value", "me", "--", "sh", "-c", command]);
    let mut lines = running.stdout();
    assert_eq!(lines.next().as_deref(), Some("ready"));
    running.signal(Signal::TERM);
    assert_eq!(lines.next().as_deref(), Some("told"));
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    assert_eq!(running.code(), 143);
    assert!(manager.lock_info("jobs").unwrap().is_none());
}

#[test]
fn watch_prints_the_holder_and_each_change() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["watch", "jobs", "--follow"]);
    let mut lines = running.stdout().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    let mut next = || lines.next().unwrap();
    assert_eq!(next(), serde_json::json!({ "key": "jobs", "state": "free" }));
    let guard = lock(&manager, "jobs");
    assert_eq!(next()["token"], guard.token().as_u64());
    guard.set_note("half done").unwrap();
    assert_eq!(next()["note"], "half done");
    let mut one = program.start(&["watch", "jobs", "--table"]);
    let mut its_lines = one.stdout();
    assert!(its_lines.next().unwrap().contains("half done"));
    guard.unlock().unwrap();
    assert_eq!(next()["state"], "free");
    assert_eq!(its_lines.next().unwrap(), "jobs: free");
    assert_eq!(one.code(), 0);
    running.signal(Signal::TERM);
    assert_eq!(running.code(), 143);
}

#[test]
fn watch_ends_when_its_reader_has_seen_enough() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["watch", "jobs", "--follow"]);
    let mut lines = running.stdout();
    assert!(lines.next().unwrap().contains("free"));
    drop(lines);
    let _guard = lock(&manager, "jobs");
    assert_eq!(running.code(), 0);
}

#[test]
fn a_note_is_shown_to_others() {
    let (program, root) = program("leading");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["run", "jobs", "--note", "job 4711", "--", "sh", "-c", "read wait"]);
    eventually(SOON, "it is held", || manager.lock_info("jobs").unwrap().is_some());
    assert_eq!(manager.lock_info("jobs").unwrap().unwrap().note.as_deref(), Some("job 4711"));
    assert!(program.run(&["list", "--table"]).stdout.contains("job 4711"));
    assert!(program.run(&["run", "jobs", "-n", "--", "true"]).stderr.contains("\"job 4711\""));
    drop(running.stdin());
    running.code();
}
