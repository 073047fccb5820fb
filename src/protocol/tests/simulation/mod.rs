//! Many random schedules: the real protocol against the model of etcd, in virtual time, with faults chosen by seed.
//!
//! `cargo test` runs a thousand seeds. `ETCD_LOCK_SIM_SEEDS` sets their number, `ETCD_LOCK_SIM_FIRST_SEED` the first
//! one. A failing seed is printed with its trace, and replays exactly. `ETCD_LOCK_SIM_KEEP_GOING` lists all failing
//! seeds.

mod checks;
mod faults;
mod foreign;
mod kinds;
mod liveness;
mod mutants;
mod network;
mod node;
mod past;
mod reading;
mod rule;
mod script;
mod streams;
mod truth;
mod turns;
mod walk;
mod weather;
mod world;
mod writing;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use checks::Violation;
use node::Tally;
use world::World;

/// The number of seeds in a plain test run.
const USUAL_SEEDS: u64 = 1_000;

/// The number of trace lines that are printed, counted from the end; `ETCD_LOCK_SIM_TRACE_LINES` changes it.
const TRACE_LINES: u64 = 400;

fn run(seed: u64) -> Result<Tally, Violation> {
    World::new(seed, false).run()
}

/// The schedule of the seed with holders that write.
fn run_with_writers(seed: u64) -> Result<Tally, Violation> {
    World::with_writers(seed, false).run()
}

/// The trace of a run.
fn trace(mut world: World) -> String {
    let result = world.run();
    let lines = world.trace();
    let most = usize::try_from(number("ETCD_LOCK_SIM_TRACE_LINES", TRACE_LINES)).unwrap_or(usize::MAX);
    let shown = &lines[lines.len().saturating_sub(most)..];
    format!("{}\n=> {}", shown.join("\n"), result.err().map_or("passed".into(), |v| v.to_string()))
}

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")),
        Err(_) => default,
    }
}

/// Runs `seeds` on all cores; returns the counts of the seeds that passed, and the lowest failing seed.
fn run_all(
    seeds: std::ops::Range<u64>,
    run: fn(u64) -> Result<Tally, Violation>,
) -> (Tally, Option<(u64, Violation)>) {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Tally::default());
    let failed: Mutex<Option<(u64, Violation)>> = Mutex::new(None);
    let keep_going = std::env::var_os("ETCD_LOCK_SIM_KEEP_GOING").is_some();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || !keep_going && failed.lock().unwrap().is_some() {
                        break;
                    }
                    match run(seed) {
                        Ok(run) => tally.add(run),
                        Err(violation) => {
                            if keep_going {
                                println!("seed {seed}: {violation}");
                            }
                            let mut failed = failed.lock().unwrap();
                            if failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                                *failed = Some((seed, violation));
                            }
                        }
                    }
                }
                sum.lock().unwrap().add(tally);
            });
        }
    });
    (sum.into_inner().unwrap(), failed.into_inner().unwrap())
}

#[test]
fn simulation_of_many_schedules_keeps_every_promise() {
    let first = number("ETCD_LOCK_SIM_FIRST_SEED", 0);
    let seeds = number("ETCD_LOCK_SIM_SEEDS", USUAL_SEEDS);
    let began = Instant::now();
    let (tally, failed) = run_all(first..first + seeds, run);
    if let Some((seed, violation)) = failed {
        println!("{}", trace(World::new(seed, true)));
        panic!("seed {seed}: {violation}\nreplay: ETCD_LOCK_SIM_FIRST_SEED={seed} ETCD_LOCK_SIM_SEEDS=1");
    }
    println!(
        "simulated {seeds} schedules in {:.1?}: {} events, {} grants, {} losses, {} faults injected",
        began.elapsed(),
        tally.events,
        tally.grants,
        tally.losses,
        tally.faults
    );
    assert!(seeds < 100 || tally.grants > 10 * seeds, "the schedules take too few locks");
}

/// An eighth of the other seeds: each takes longer.
#[test]
fn simulation_of_holders_that_write_keeps_every_promise() {
    let first = number("ETCD_LOCK_SIM_FIRST_SEED", 0);
    let seeds = number("ETCD_LOCK_SIM_SEEDS", USUAL_SEEDS).div_ceil(8);
    let (tally, failed) = run_all(first..first + seeds, run_with_writers);
    if let Some((seed, violation)) = failed {
        println!("{}", trace(World::with_writers(seed, true)));
        panic!("seed {seed}: {violation}\nreplay: ETCD_LOCK_SIM_FIRST_SEED={seed} ETCD_LOCK_SIM_SEEDS=1");
    }
    println!("simulated {seeds} schedules with writers: {} grants, {} writes", tally.grants, tally.writes);
    assert!(seeds < 100 || tally.writes > 100 * seeds, "the schedules write too little");
}

#[test]
fn simulation_replays_a_seed_exactly() {
    for seed in 0..20 {
        let again = || trace(World::new(seed, true));
        assert_eq!(again(), again(), "seed {seed}");
    }
}
