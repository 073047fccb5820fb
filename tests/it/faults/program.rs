//! `etcd-lock run` under faults: the command's whole process group is dead before anybody else can have the lock.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::LockManager;

use crate::support::doors::options;
use crate::support::program::{Lifeline, Program};
use crate::support::referee::millis_between;
use crate::support::{Cluster, Etcd, Proxy, Raw, fresh_root, stalls};

/// The TTL of the wrapped commands, in seconds, and their grace.
const TTL: u64 = 6;
const GRACE: &str = "2s";

/// The number of partitions that run at the same time.
const PARTITIONS: usize = 20;

/// The time limit of everything that is known to end.
const LONG: Duration = Duration::from_secs(60);

/// The times of one run, in ms.
#[derive(Debug)]
struct Outcome {
    /// From the next holder's grant to the death of the last process; positive if that was late.
    death_after_grant: i64,
    /// From the fault to the death.
    death_after_fault: i64,
    stalls: Duration,
}

impl Outcome {
    /// Late, and not because the machine stalled for longer than that.
    fn is_late(&self) -> bool {
        i128::from(self.death_after_grant) > self.stalls.as_millis().cast_signed()
    }
}

/// Runs a command that ignores SIGTERM and has grandchildren, breaks something, and measures who comes first: the death
/// of the last of them, or the grant of the next holder, who has a way to etcd of its own.
fn race(program: &Program, next: &LockManager, name: &str, ready: &Barrier, fault: impl FnOnce()) -> Outcome {
    let life = Lifeline::new();
    let script = life.stubborn();
    let ttl = format!("{TTL}s");
    let limits = ["--ttl", &ttl, "--grace", GRACE, "--status-fd", "2"];
    let mut running = program.start(&[&["run", name], &limits[..], &["--", "sh", "-c", &script]].concat());
    life.wait_alive(3);
    let pending = next.new_lock(name).unwrap().enqueue().unwrap();
    ready.wait();
    // At a random point between two renewals.
    thread::sleep(Duration::from_secs(TTL).mul_f64(fastrand::f64() / 3.0));
    let begin = Instant::now();
    fault();
    let got = thread::spawn(move || {
        pending.ready().recv_timeout(LONG).expect_err("the outcome is known");
        let got = Instant::now();
        pending.wait().expect("the next holder is granted").unlock().unwrap();
        got
    });
    let dead = life.wait_dead(LONG);
    let got = got.join().expect("the next holder's thread");
    let outcome = Outcome {
        death_after_grant: millis_between(got, dead),
        death_after_fault: millis_between(begin, dead),
        stalls: stalls::since(begin),
    };
    running.event("lost");
    assert_eq!(running.code(), 76);
    outcome
}

#[track_caller]
fn judge(what: &str, outcomes: &[Outcome]) {
    let sorted = |of: fn(&Outcome) -> i64| {
        let mut sorted: Vec<i64> = outcomes.iter().map(of).collect();
        sorted.sort_unstable();
        sorted
    };
    println!("{what}: death - grant in ms: {:?}", sorted(|outcome| outcome.death_after_grant));
    println!("{what}: death - fault in ms: {:?}", sorted(|outcome| outcome.death_after_fault));
    for outcome in outcomes {
        assert!(!outcome.is_late(), "dead too late: {outcome:?}");
    }
}

/// Purpose: a command whose wrapper is cut off from etcd must be dead before another may have the lock, wherever
/// between two renewals the cut happens. `ETCD_LOCK_RUN_ROUNDS` repeats it.
#[test]
fn a_command_behind_a_partition_is_dead_before_the_next_grant() {
    let rounds = std::env::var("ETCD_LOCK_RUN_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap());
    let etcd = Etcd::start();
    for _ in 0..rounds {
        let root = fresh_root("run-partition");
        let ready = Barrier::new(PARTITIONS);
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let runs: Vec<_> = (0..PARTITIONS)
                .map(|n| {
                    let (etcd, root, ready) = (&etcd, &root, &ready);
                    scope.spawn(move || {
                        let proxy = Proxy::of(etcd);
                        let program = Program::at(&[proxy.endpoint()], root);
                        let next = LockManager::connect(etcd.endpoints(), root, options(TTL)).unwrap();
                        race(&program, &next, &format!("p{n}"), ready, || proxy.blackhole())
                    })
                })
                .collect();
            runs.into_iter().map(|run| run.join().expect("a partition")).collect()
        });
        judge("partition", &outcomes);
    }
}

/// Purpose: a command that heeds the wish has the grace for an orderly end, while the lock is still held.
#[test]
fn a_command_behind_a_partition_is_told_before_it_is_killed() {
    let etcd = Etcd::start();
    let (root, proxy) = (fresh_root("run-told"), Proxy::of(&etcd));
    let program = Program::at(&[proxy.endpoint()], &root);
    let script =
        "trap 'echo told; sleep 0.3; echo done; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running =
        program.start(&["run", "jobs", "--ttl", "3s", "--grace", "1s", "--", "sh", "-c", script]);
    let mut lines = running.stdout();
    assert_eq!(lines.next().as_deref(), Some("ready"));
    let cut = Instant::now();
    proxy.blackhole();
    assert_eq!(lines.next().as_deref(), Some("told"));
    assert_eq!(lines.next().as_deref(), Some("done"));
    let ended = cut.elapsed();
    assert!(ended < Duration::from_secs(3) + stalls::since(cut), "the lease lives, after {ended:?}");
    assert_eq!(running.code(), 76);
    // The shell may have a line about its `sleep` first.
    while !running.line().contains("etcd has not answered for") {}
}

/// Purpose: the same with a cluster that stands still for longer than the TTL and then goes on.
#[test]
fn a_command_under_a_stopped_cluster_is_dead_before_the_next_grant() {
    let cluster = Cluster::start(3);
    let root = fresh_root("run-stopped");
    let program = Program::new(cluster.access(), &root);
    let next = LockManager::connect(cluster.endpoints(), &root, options(TTL)).unwrap();
    let outcome = thread::scope(|scope| {
        race(&program, &next, "jobs", &Barrier::new(1), || {
            cluster.members().iter().for_each(|member| member.stop());
            scope.spawn(|| {
                thread::sleep(Duration::from_secs(TTL + 2));
                cluster.members().iter().for_each(|member| member.cont());
            });
        })
    });
    judge("stopped members", &[outcome]);
    let raw = Raw::connect(cluster.access());
    crate::support::eventually(LONG, "nothing is left", || raw.count(&format!("{root}/jobs/")) == 0);
}
