//! `run`: nothing of the command outlives its lock, whatever stands still and whatever has left its group.

use std::io::Write;
use std::process::Command;

use etcd_lock::ForceUnlock;
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};

use super::program;
use crate::support::manager::connect;
use crate::support::program::{Lifeline, Program, Running};
use crate::support::{SOON, shared};

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

/// Purpose: where there is a cgroup, a process that has left the group is reached, too.
#[test]
fn what_has_left_the_group_dies_with_the_lock_where_a_cgroup_can_be_made() {
    let (program, root) = program("running");
    let manager = connect(shared().access(), &root);
    let life = Lifeline::new();
    let script = life.script("cat /proc/self/cgroup; setsid sh -c 'echo >&9; exec sleep 60' & sleep 600");
    let mut running = program.start(&["run", "jobs", "--", "sh", "-c", &script]);
    life.wait_alive(1);
    let own = |line: &String| line.starts_with("0::");
    let cgroup = running.stdout().find(own).unwrap_or_default();
    manager.force_unlock("jobs", ForceUnlock::Lock).unwrap();
    assert_eq!(running.code(), 76);
    if cgroup.contains("/etcd-lock.") {
        life.wait_dead(SOON);
    } else {
        println!("no cgroup can be made here: {cgroup}");
    }
}
