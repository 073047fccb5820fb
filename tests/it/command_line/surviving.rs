//! `run`: nothing of the command outlives its lock, whatever stands still and whatever has left its group.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use etcd_lock::ForceUnlock;
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};

use super::program;
use crate::support::manager::{connect, enqueue, granted};
use crate::support::program::{Lifeline, Program, Running};
use crate::support::{SOON, eventually, shared, stalls};

/// Purpose: nobody has to read the events: a pipe that is full must not keep the program from its watch.
#[test]
fn a_reader_of_events_that_does_not_read_delays_no_kill() {
    let (program, root) = program("surviving");
    let manager = connect(shared().access(), &root);
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("events");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    let mut full = std::fs::File::from(rustix::fs::open(&pipe, flags, Mode::empty()).unwrap());
    while full.write(&[b' '; 4096]).is_ok() {}
    // A page with room for `held`, but not for `started`.
    std::io::Read::read_exact(&mut full, &mut [0; 4096]).unwrap();
    full.write_all(&[b' '; 4096 - 100]).unwrap();

    let life = Lifeline::new();
    let mut command = Command::new("sh");
    program.set_up(&mut command);
    let start = format!("exec 3>>'{}'; exec \"$0\" \"$@\"", pipe.display());
    command.args(["-c", &start]).arg(Program::path()).args(["run", "jobs", "--status-fd", "3"]);
    command.args(["--", "sh", "-c", &life.script("echo >&9; exec sleep 600")]);
    let mut running = Running::start(command);
    life.wait_alive(1);
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    life.wait_dead(SOON);
    assert_eq!(running.code(), 76);
}

/// Purpose: if the watcher dies with the program, the kernel still kills the command itself.
#[test]
fn the_command_itself_dies_even_if_the_watcher_is_killed_first() {
    let (program, _) = program("running");
    let life = Lifeline::new();
    let script = life.script("echo >&9; exec sleep 600");
    let mut running = program.start(&["run", "jobs", "--", "sh", "-c", &script]);
    life.wait_alive(1);
    // Or it would start another watcher.
    running.signal(Signal::STOP);
    let watcher = running.child_with("__watch").expect("a watcher");
    kill_process(watcher, Signal::KILL).unwrap();
    running.signal(Signal::KILL);
    running.code();
    life.wait_dead(SOON);
}

/// Purpose: a service manager may signal every process of a service; and a watcher that was killed all the same must not be
/// missed when the program is.
#[test]
fn the_watcher_outlives_other_signals_and_is_replaced_when_it_is_killed() {
    let (program, _) = program("surviving");
    let life = Lifeline::new();
    let mut running = program.start(&["run", "jobs", "--", "sh", "-c", &life.stubborn()]);
    life.wait_alive(3);
    let first = running.child_with("__watch").expect("a watcher");
    let signals = [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::HUP];
    eventually(SOON, "the watcher catches them", || signals.iter().all(|&signal| is_caught(first, signal)));
    for signal in signals {
        kill_process(first, signal).unwrap();
    }
    // One that is dead has no memory.
    assert!(std::fs::read_to_string(format!("/proc/{first}/status")).unwrap().contains("VmRSS"));
    kill_process(first, Signal::KILL).unwrap();
    let mut second = None;
    eventually(SOON, "there is another watcher", || {
        second = running.child_with("__watch").filter(|&watcher| watcher != first);
        second.is_some()
    });
    running.signal(Signal::KILL);
    running.code();
    life.wait_dead(SOON);
}

/// Whether a process has a handler for this signal.
fn is_caught(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
    u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}

/// Purpose: a killed program cannot tidy up, so its watcher does, also what the command has made in its cgroup.
#[test]
fn no_cgroup_is_left_behind() {
    let (program, _) = program("surviving");
    for signal in [Signal::TERM, Signal::KILL] {
        let life = Lifeline::new();
        let script = life.script("grep ^0:: /proc/self/cgroup || echo none; echo >&9; exec sleep 600");
        let mut running = program.start(&["run", "jobs", "--", "sh", "-c", &script]);
        let line = running.stdout().next().unwrap();
        life.wait_alive(1);
        let path = line.trim_start_matches("0::/");
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let folder =
            mounts.map(|mount| Path::new(mount).join(path)).into_iter().find(|folder| folder.exists());
        let Some(folder) = folder.filter(|_| is_own_cgroup(&line)) else { return };
        std::fs::create_dir(folder.join("within")).unwrap();
        running.signal(signal);
        running.code();
        eventually(SOON, "the cgroup is gone", || !folder.exists());
    }
}

/// Whether this line of `/proc/self/cgroup` is about a cgroup that the program has made.
fn is_own_cgroup(line: &str) -> bool {
    let made = line.starts_with("0::") && line.contains("/etcd-lock.");
    if !made {
        println!("no cgroup can be made here: {line}");
    }
    made
}

/// Purpose: where there is a cgroup, a process that has left the group is reached, too: also one that ignores the wish,
/// and also if the command itself heeds it, or ends by itself.
#[test]
fn what_has_left_the_group_dies_with_the_lock_where_a_cgroup_can_be_made() {
    let (program, root) = program("surviving");
    let manager = connect(shared().access(), &root);
    let left = "grep ^0:: /proc/self/cgroup || echo none; setsid sh -c 'trap \"\" TERM; echo >&9; exec sleep 60' & read wait; exit 5";
    for (end, options, code) in [
        (End::Eviction, &[][..], 76),
        (End::ByItself, &["--grace", "300ms"], 5),
        (End::MaxRun, &["--grace", "300ms", "--max-run", "1s"], 124),
    ] {
        let (life, start) = (Lifeline::new(), Instant::now());
        let script = life.script(left);
        let args = [&["run", "jobs"], options, &["--", "sh", "-c", &script]].concat();
        let mut running = program.start(&args);
        let cgroup = running.stdout().next().unwrap();
        life.wait_alive(1);
        let next = enqueue(&manager, "jobs");
        match end {
            End::Eviction => drop(manager.force_unlock("jobs", ForceUnlock::Lock).unwrap()),
            End::ByItself => drop(running.stdin()),
            End::MaxRun => {}
        }
        next.ready().recv_timeout(SOON).expect_err("the next holder is granted");
        let got = Instant::now();
        if is_own_cgroup(&cgroup) {
            let late = life.wait_dead(SOON).saturating_duration_since(got);
            // That of an eviction is told after the fact.
            assert!(
                end == End::Eviction || late <= stalls::since(start),
                "{end:?}: dead {late:?} after the grant"
            );
        }
        assert_eq!(running.code(), code, "{end:?}");
        drop(granted(next));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Eviction,
    ByItself,
    MaxRun,
}
