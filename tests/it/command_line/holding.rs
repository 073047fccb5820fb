//! `hold` and `wait`.

use std::io::Write;

use etcd_lock::ForceUnlock;
use rustix::process::Signal;
use serde_json::Value;

use super::program;
use crate::support::manager::{connect, lock};
use crate::support::{SOON, eventually, shared};

#[test]
fn a_lock_is_held_until_standard_input_is_closed_or_a_signal_arrives() {
    let (program, root) = program("holding");
    let manager = connect(shared().access(), &root);
    for signal in [None, Some((Signal::TERM, 143))] {
        let mut running = program.start(&["hold", "jobs"]);
        let line: Value = serde_json::from_str(&running.stdout().next().unwrap()).unwrap();
        let info = manager.lock_info("jobs").unwrap().unwrap();
        assert_eq!(line["token"], info.token.as_u64());
        assert_eq!((&line["lock"], &line["owner"]), (&"jobs".into(), &info.owner.unwrap().into()));
        let code = match signal {
            None => {
                drop(running.stdin());
                0
            }
            Some((signal, code)) => {
                running.signal(signal);
                code
            }
        };
        assert_eq!(running.code(), code);
        assert!(manager.lock_info("jobs").unwrap().is_none());
    }
}

#[test]
fn a_hold_that_is_lost_ends_with_76() {
    let (program, root) = program("holding");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["hold", "jobs"]);
    running.stdout().next().unwrap();
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    assert_eq!(running.code(), 76);
    assert!(running.line().contains("force-unlocked"));
}

#[test]
fn wait_ends_when_the_lock_is_free_and_leaves_no_trace() {
    let (program, root) = program("holding");
    let manager = connect(shared().access(), &root);
    let guard = lock(&manager, "jobs");
    let mut running = program.start(&["wait", "jobs"]);
    let mut stopped = program.start(&["wait", "jobs"]);
    stopped.signal(Signal::TERM);
    // Before it has set up its handler the signal has the same effect in another form.
    assert!([143, -1].contains(&stopped.code()));
    guard.unlock().unwrap();
    assert_eq!(running.code(), 0);
    eventually(SOON, "nobody holds it", || manager.queue("jobs").unwrap().is_empty());
}

/// Purpose: a person who is asked for a password must be able to give up.
#[test]
fn a_signal_ends_a_program_that_waits_for_its_password() {
    let (program, _) = program("holding");
    let options = ["--user", "me", "--password-file", "-"];
    for args in [&["run", "jobs", "--", "true"][..], &["wait", "jobs"], &["watch", "jobs"], &["list"]] {
        let mut running = program.start(&[&options[..], args].concat());
        let mut keyboard = running.stdin();
        keyboard.write_all(b"half a pass").unwrap();
        eventually(SOON, "it reads", || rustix::io::ioctl_fionread(&keyboard) == Ok(0));
        running.signal(Signal::TERM);
        assert_eq!(running.code(), -1, "{args:?}: it has no handler yet");
    }
}
