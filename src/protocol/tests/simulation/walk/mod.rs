//! Every interleaving of a small scope: two managers on one name, all orders of events, to a given depth.
//!
//! The protocol and the model of etcd are copied at each branch, and states that differ only in names and times are
//! walked once. Checked in each state: the manager that holds the lock is first in etcd (P1, P2), tokens increase (P4),
//! no manager leaves a key behind that it no longer tracks (P6), and a refused try and a confirmed release are true
//! (P9).
//!
//! `ETCD_LOCK_WALK_DEPTH` walks deeper than a plain test run.
//!
//! Not covered: more than two managers or one name (batches, milestone watches), closing, callers' time limits,
//! elections, a full store, lagging members. Time is abstracted: a timer may fire at any moment, in the order of its
//! manager's timers, and states with the same timers in the same order are regarded as equal, whatever the distance
//! between them. The faults on one path are limited by its scope, which the test prints. The random simulation covers
//! all of that.

mod effects;
mod events;
mod fingerprint;
mod state;

use std::collections::HashMap;
use std::time::Instant;

use fingerprint::Fingerprints;
use state::{Choice, Scope, State};

/// The depth of a plain test run.
const USUAL_DEPTH: u64 = 3;

/// The states visited and the counts of a walk.
struct Walk {
    fingerprints: Fingerprints,
    /// Each state, with the largest depth to which it was walked from there.
    seen: HashMap<u128, u64>,
    transitions: u64,
    path: Vec<(Choice, bool)>,
}

impl Walk {
    /// Walks all continuations, `depth` events deep.
    fn from(&mut self, state: &State, depth: u64) -> Result<(), String> {
        let fingerprint = self.fingerprints.of(&state.print());
        let seen = self.seen.entry(fingerprint).or_insert(0);
        if *seen > depth {
            return Ok(());
        }
        *seen = depth + 1;
        if depth == 0 {
            return Ok(());
        }
        for choice in state.choices() {
            for wait in [false, true] {
                if wait && !state.may_wait(choice) {
                    continue;
                }
                self.transitions += 1;
                self.path.push((choice, wait));
                let mut next = state.clone();
                next.happen(choice, wait)?;
                self.from(&next, depth - 1)?;
                self.path.pop();
            }
        }
        Ok(())
    }
}

/// Walks a scope; a violation comes with the path that leads to it.
fn walk(scope: Scope, depth: u64) -> Result<(usize, u64), String> {
    let mut walk =
        Walk { fingerprints: Fingerprints::new(), seen: HashMap::new(), transitions: 0, path: Vec::new() };
    let result = walk.from(&State::new(scope), depth);
    let steps = || walk.path.iter().map(|step| format!("  {step:?}\n")).collect::<String>();
    result.map_err(|violation| format!("{violation}, after\n{}", steps()))?;
    Ok((walk.seen.len(), walk.transitions))
}

/// A scope without faults.
const FAIR: Scope = Scope {
    threads: [1, 1],
    calls: 2,
    unanswered: 0,
    repeated: 0,
    breaks: 0,
    expiries: 0,
    timers: 0,
    bursts: 0,
};

/// The scopes, and how much deeper or less deep than the others each is walked.
const SCOPES: [(&str, Scope, i64); 6] = [
    ("no fault", Scope { bursts: 1, ..FAIR }, 4),
    ("two threads of one manager", Scope { threads: [2, 1], calls: 3, bursts: 1, ..FAIR }, 2),
    ("an answer is missing", Scope { unanswered: 1, timers: 1, ..FAIR }, 2),
    ("a delete is executed twice", Scope { unanswered: 1, repeated: 1, calls: 3, ..FAIR }, 2),
    ("a watch stream breaks", Scope { breaks: 1, timers: 1, ..FAIR }, 2),
    ("a lease expires", Scope { expiries: 1, unanswered: 1, timers: 1, ..FAIR }, 0),
];

#[test]
fn every_interleaving_of_a_small_scope_keeps_the_promises() {
    let depth = super::number("ETCD_LOCK_WALK_DEPTH", USUAL_DEPTH);
    for (what, scope, deeper) in SCOPES {
        let began = Instant::now();
        let depth = depth.saturating_add_signed(deeper);
        match walk(scope, depth) {
            Ok((states, transitions)) => println!(
                "{what}: {states} states, {transitions} transitions, {depth} deep, in {:.1?}",
                began.elapsed()
            ),
            Err(violation) => panic!("{what}: {violation}"),
        }
    }
}
