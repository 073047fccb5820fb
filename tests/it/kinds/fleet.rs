//! Processes with several threads each that take locks in all modes, and some of which are killed.
//!
//! `ETCD_LOCK_KINDS_SECONDS` sets the length.

mod judge;
mod member;

use std::time::{Duration, Instant};

use judge::Judge;

use crate::support::manager::{connect, wait_for_contenders};
use crate::support::oracle::now;
use crate::support::process::{self, Process};
use crate::support::{Raw, SOON, fresh_root, shared};

const PROCESSES: usize = 8;
const DEFAULT_SECONDS: u64 = 6;
/// The time between two kills: most of a TTL, since the locks of a killed process are held that long.
const BETWEEN_KILLS: Duration = Duration::from_millis(1700);
const TEST: &str = "kinds::fleet::a_fleet_of_all_modes_keeps_the_rule_while_processes_are_killed";

/// The parent's view of one process.
struct Member {
    name: String,
    process: Process,
}

impl Member {
    fn start(number: usize, root: &str) -> Self {
        let name = format!("member-{number}");
        let endpoints = shared().endpoints().join(",");
        let environment = [("TEST_ENDPOINTS", &*endpoints), ("TEST_ROOT", root)];
        let mut process = Process::spawn_with(TEST, &name, &environment);
        assert_eq!(process.hear(SOON), "ready");
        Self { name, process }
    }

    fn kill(mut self, judge: &mut Judge) {
        self.process.kill();
        let dead = now();
        for line in self.process.said() {
            judge.hear(&self.name, &line);
        }
        judge.died(&self.name, dead);
    }

    fn finish(mut self, judge: &mut Judge) {
        self.process.say("stop");
        loop {
            let line = self.process.hear(SOON);
            if line == "stopped" {
                break;
            }
            judge.hear(&self.name, &line);
        }
        self.process.finish(SOON);
    }
}

/// Readers are never beside a writer, and there are never more permits out than any of their holders allows.
#[test]
fn a_fleet_of_all_modes_keeps_the_rule_while_processes_are_killed() {
    if let Some(role) = process::role() {
        return member::run(&role);
    }
    let seconds = std::env::var("ETCD_LOCK_KINDS_SECONDS");
    let seconds = seconds.map_or(DEFAULT_SECONDS, |text| text.parse().expect("a number of seconds"));
    let root = fresh_root("fleet");
    let mut judge = Judge::default();
    let mut fleet: Vec<Member> = (0..PROCESSES).map(|number| Member::start(number, &root)).collect();
    let (end, mut next) = (Instant::now() + Duration::from_secs(seconds), PROCESSES);
    while Instant::now() < end {
        // What happens meanwhile is what is tested.
        std::thread::sleep(BETWEEN_KILLS);
        fleet.remove(0).kill(&mut judge);
        fleet.push(Member::start(next, &root));
        next += 1;
    }
    for member in fleet {
        member.finish(&mut judge);
    }
    println!("{} processes, {}", next, judge.summary());
    judge.judge();

    // Nothing is left once the leases of the killed ones have expired, and every mode is admitted.
    let (raw, manager) = (Raw::connect(shared().access()), connect(shared().access(), &root));
    for name in member::NAMES {
        wait_for_contenders(&raw, &format!("{root}/{name}/"), 0);
        crate::support::take(&manager.new_lock(name).unwrap()).unlock().unwrap();
    }
}
