//! `run`: the lock and the command live and die together.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use etcd_lock::ForceUnlock;
use rustix::process::Signal;

use super::program;
use crate::support::manager::{connect, enqueue, granted, lock, wait_for_contenders};
use crate::support::program::{Lifeline, Program};
use crate::support::{Raw, SOON, eventually, shared, stalls};

/// The time in which a command is dead once its lock was taken away.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The same on a machine that has other work: far below the grace.
const WITHOUT_GRACE: Duration = Duration::from_secs(1);

/// A younger hold is not watched yet: its end is told up to so much later.
const WATCHED: Duration = Duration::from_millis(400);

/// Starts a command that ignores SIGTERM, and waits for it.
fn stubborn(program: &Program, options: &[&str]) -> (crate::support::program::Running, Lifeline) {
    let life = Lifeline::new();
    let script = life.stubborn();
    let args = [&["run", "jobs", "--status-fd", "2"], options, &["--", "sh", "-c", &script]].concat();
    let running = program.start(&args);
    life.wait_alive(3);
    (running, life)
}

#[test]
fn the_command_finds_its_hold_in_the_environment() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["run", "a job", "--owner", "me", "--", "sh", "-c", "env; read wait"]);
    eventually(SOON, "it is held", || manager.lock_info("a job").unwrap().is_some());
    let info = manager.lock_info("a job").unwrap().unwrap();
    drop(running.stdin());
    let text = running.rest_of_stdout();
    let value = |name: &str| {
        let prefix = format!("ETCD_LOCK_{name}=");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("no {name}: {text}"))
    };
    let lease = format!("{:x}", info.lease_id.unwrap());
    assert_eq!((value("NAME"), value("OWNER"), value("MODE")), ("a job", "me", "exclusive"));
    assert_eq!((value("TOKEN"), value("REV")), (&*info.token.to_string(), &*info.token.to_string()));
    assert_eq!((value("LEASE"), value("TTL")), (&*lease, "30"));
    assert_eq!(value("ENDPOINTS"), shared().endpoints().join(","));
    assert!(value("KEY").starts_with(&format!("{root}/a job/{lease}")));
}

#[test]
fn a_name_within_itself_is_refused_at_once_and_another_name_is_not() {
    let (program, _) = program("running");
    let me = Program::path().to_str().unwrap();
    let within = |inner: &str| program.run(&["run", "jobs", "--", me, "run", inner, "--", "true"]).code;
    assert_eq!(within("jobs"), 75);
    assert_eq!(within("other"), 0);
    let deeper = ["run", "jobs", "--", me, "run", "other", "--", me, "run", "jobs", "--", "true"];
    assert_eq!(program.run(&deeper).code, 75);
    // A variable that has outlived its command is about no hold.
    let stale = program.run(&["run", "jobs", "--", "sh", "-c", "printf %s \"$ETCD_LOCK_HELD\""]).stdout;
    assert!(stale.contains("jobs"));
    assert_eq!(program.with("ETCD_LOCK_HELD", stale).run(&["run", "jobs", "--", "true"]).code, 0);
}

#[test]
fn standard_input_and_output_are_the_commands() {
    let (program, _) = program("running");
    let ended = program.run_with(&["run", "jobs", "-v", "--", "tr", "a-z", "A-Z"], "hello\n");
    assert_eq!((ended.code, &*ended.stdout), (0, "HELLO\n"), "{ended:?}");
    assert!(ended.stderr.contains("holding jobs, token ") && ended.stderr.contains("released jobs"));
}

#[test]
fn signals_reach_the_command() {
    let (program, _) = program("running");
    let script = "for s in INT TERM HUP QUIT USR1 USR2 WINCH; do trap \"echo $s\" $s; done; echo ready
        while :; do read line && exit 3; done";
    let mut running = program.start(&["run", "jobs", "--", "sh", "-c", script]);
    let (mut lines, input) = (running.stdout(), running.stdin());
    assert_eq!(lines.next().as_deref(), Some("ready"));
    for (name, signal) in [
        ("INT", Signal::INT),
        ("TERM", Signal::TERM),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("WINCH", Signal::WINCH),
    ] {
        running.signal(signal);
        assert_eq!(lines.next().as_deref(), Some(name));
    }
    std::io::Write::write_all(&mut { input }, b"\n").unwrap();
    assert_eq!(running.code(), 3);
}

#[test]
fn a_stop_and_its_end_reach_the_command() {
    let (program, _) = program("running");
    let mut running =
        program.start(&["run", "jobs", "--status-fd", "2", "--", "sh", "-c", "read wait; exit 8"]);
    let pid = running.event("started")["pid"].as_i64().unwrap();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().and_then(|rest| rest.chars().next())
    };
    // Until then it is this program's helper.
    eventually(SOON, "the command runs", || {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sh"))
    });
    running.signal(Signal::TSTP);
    eventually(SOON, "the command is stopped", || state() == Some('T'));
    running.signal(Signal::CONT);
    eventually(SOON, "the command goes on", || state() == Some('S'));
    drop(running.stdin());
    assert_eq!(running.code(), 8);
}

#[test]
fn a_signal_while_waiting_leaves_the_queue() {
    let (program, root) = program("running");
    let (manager, raw) = (connect(shared().access(), &root), Raw::connect(shared().access()));
    let _guard = lock(&manager, "jobs");
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut running = program.start(&["run", "jobs", "--status-fd", "2", "--", "true"]);
        assert_eq!(running.event("waiting")["token"], manager.queue("jobs").unwrap()[0].token.as_u64());
        wait_for_contenders(&raw, &format!("{root}/jobs/"), 2);
        running.signal(signal);
        assert_eq!(running.code(), code);
        assert_eq!(raw.count(&format!("{root}/jobs/")), 1);
    }
}

/// Purpose: an eviction is told after the fact, so there is no grace: every moment counts.
#[test]
fn a_command_whose_lock_is_taken_away_is_killed_at_once() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    for scope in [ForceUnlock::Lock, ForceUnlock::Session] {
        let times = [(); 3].map(|()| {
            let (mut running, life) = stubborn(&program, &[]);
            std::thread::sleep(WATCHED);
            let start = Instant::now();
            manager.force_unlock("jobs", scope).unwrap();
            let told = Instant::now();
            let after = life.wait_dead(SOON).saturating_duration_since(told);
            assert!(after <= WITHOUT_GRACE + stalls::since(start), "{after:?} after {scope:?}");
            running.event("lost");
            assert_eq!(running.code(), 76);
            after
        });
        println!("dead after {scope:?}: {times:?}");
        assert!(times.iter().any(|&after| after <= AT_ONCE), "{times:?} after {scope:?}");
    }
}

/// Purpose: a program that is killed cannot kill; its watcher and the kernel do.
#[test]
fn the_whole_group_dies_with_a_killed_program() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let (mut running, life) = stubborn(&program, &["--ttl", "3s", "--grace", "1s"]);
    let next = enqueue(&manager, "jobs");
    let before = Instant::now();
    running.signal(Signal::KILL);
    running.code();
    let dead = life.wait_dead(SOON);
    assert!(dead - before < Duration::from_secs(1) + stalls::since(before), "{:?}", dead - before);
    let guard = granted(next);
    assert!(dead < Instant::now() - guard.held_for());
}

/// Purpose: a program that stands still cannot kill; its watcher knows the deadline.
#[test]
fn the_group_of_a_stopped_program_is_dead_before_the_next_grant() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let (running, life) = stubborn(&program, &["--ttl", "3s", "--grace", "1s"]);
    let next = enqueue(&manager, "jobs");
    let start = Instant::now();
    running.signal(Signal::STOP);
    next.ready().recv_timeout(SOON).expect_err("the next holder is granted");
    let got = Instant::now();
    let dead = life.wait_dead(SOON);
    assert!(dead <= got + stalls::since(start), "dead {:?} after the grant", dead.duration_since(got));
    println!("dead {:?} before the grant", got.saturating_duration_since(dead));
    drop(granted(next));
    running.signal(Signal::CONT);
    let mut running = running;
    assert_eq!(running.code(), 76);
}

/// Purpose: what a command leaves behind in its group must not work on without the lock.
#[test]
fn what_the_command_leaves_behind_is_ended_before_the_lock_is_free() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let life = Lifeline::new();
    let script = life.script("(trap '' TERM; echo >&9; exec sleep 600) & read line; exit 5");
    let mut running = program.start(&["run", "jobs", "--grace", "300ms", "--", "sh", "-c", &script]);
    life.wait_alive(1);
    let next = enqueue(&manager, "jobs");
    drop(running.stdin());
    let guard = granted(next);
    assert!(!life.is_alive());
    assert_eq!(running.code(), 5);
    drop(guard);
}

#[test]
fn the_lock_is_held_at_least_so_long() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let start = Instant::now();
    let args = ["run", "jobs", "--status-fd", "2", "--hold-at-least", "1s", "--", "true"];
    let mut running = program.start(&args);
    running.event("ended");
    assert!(manager.lock_info("jobs").unwrap().is_some() || start.elapsed() > Duration::from_secs(1));
    running.event("released");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(running.code(), 0);
}

#[test]
fn a_loss_can_be_ignored_or_told_to_a_program() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let args =
        ["run", "jobs", "--on-loss", "ignore", "--status-fd", "2", "--", "sh", "-c", "read line; exit 9"];
    let mut running = program.start(&args);
    running.event("started");
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    running.event("lost");
    drop(running.stdin());
    assert_eq!(running.code(), 9);

    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let script = folder.path().join("script");
    let text = format!("#!/bin/sh\necho $ETCD_LOCK_NAME >{}.new; mv {0}.new {0}\n", told.display());
    std::fs::write(&script, text).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let on_loss = format!("exec:{}", script.display());
    let args = ["run", "jobs", "--on-loss", &on_loss, "--status-fd", "2", "--", "sleep", "600"];
    let mut running = program.start(&args);
    running.event("started");
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    assert_eq!(running.code(), 76);
    eventually(SOON, "the program was told", || {
        std::fs::read_to_string(&told).is_ok_and(|name| name == "jobs\n")
    });
}

#[test]
fn systemd_is_told_when_the_command_runs_under_the_lock() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let program = program.with("NOTIFY_SOCKET", folder.path().join("notify").to_str().unwrap());
    let guard = lock(&manager, "jobs");
    let args = ["run", "jobs", "--status-fd", "2", "--", "sh", "-c", "test -z \"$NOTIFY_SOCKET\""];
    let mut running = program.start(&args);
    running.event("waiting");
    socket.set_nonblocking(true).unwrap();
    assert!(socket.recv(&mut [0; 100]).is_err(), "not ready while it waits");
    socket.set_nonblocking(false).unwrap();
    guard.unlock().unwrap();
    let mut message = [0; 100];
    let length = socket.recv(&mut message).unwrap();
    assert!(String::from_utf8_lossy(&message[..length]).starts_with("READY=1\n"));
    assert_eq!(running.code(), 0, "the command has no socket to notify");
}

#[test]
fn what_nohup_ignores_stays_ignored() {
    let (program, _) = program("running");
    let mut command = std::process::Command::new("nohup");
    program.set_up(&mut command);
    command.arg(Program::path()).args(["run", "jobs", "--", "sh", "-c", "echo ready; read line; exit 4"]);
    let mut running = crate::support::program::Running::start(command);
    let mut lines = running.stdout();
    assert_eq!(lines.next().as_deref(), Some("ready"));
    running.signal(Signal::HUP);
    drop(running.stdin());
    assert_eq!(running.code(), 4);
}
