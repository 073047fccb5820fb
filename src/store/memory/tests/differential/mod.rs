//! Compares the model with a real etcd: the same requests, step by step, must have the same answers and the same
//! events.
//!
//! `ETCD_LOCK_MODEL_SEED=<n>` replays and prints one random sequence; `ETCD_LOCK_MODEL_SEQUENCES=<n>` sets the number
//! of sequences.

mod generate;
mod pair;
mod scripted;

use generate::{Generator, Step};
use pair::Pair;

/// The default number of sequences, which take some seconds.
const SEQUENCES: u64 = 250;

fn number_from_env(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[tokio::test]
async fn random_sequences_have_the_same_answers_and_events_on_the_model_and_on_etcd() {
    let replay = number_from_env("ETCD_LOCK_MODEL_SEED");
    // Different sequences in each run; everything else is deterministic.
    let first = replay.unwrap_or_else(|| fastrand::u64(..1 << 48));
    let usual = if replay.is_some() { 1 } else { SEQUENCES };
    let count = number_from_env("ETCD_LOCK_MODEL_SEQUENCES").unwrap_or(usual);
    let mut pair = Pair::start().await;
    for seed in first..first + count {
        let result = run(&mut pair, seed).await;
        let trace = pair.take_trace();
        if let Err(difference) = result {
            panic!("{difference}\nafter\n{trace}\nreplay with ETCD_LOCK_MODEL_SEED={seed}");
        }
        if count == 1 {
            println!("{trace}");
        }
    }
    if let Err(difference) = pair.settle().await {
        panic!("{difference}");
    }
    println!("compared {count} sequences from seed {first}: {}", pair.counts());
}

async fn run(pair: &mut Pair, seed: u64) -> Result<(), String> {
    pair.begin(seed).await?;
    let mut generator = Generator::new(seed);
    for _ in 0..generator.length() {
        match generator.step(&pair.model) {
            Step::Ask(request) => {
                let _same = pair.ask(&request).await?;
            }
            Step::Watch(spec) => {
                let _id = pair.watch(spec).await?;
            }
            Step::Unwatch => pair.unwatch_oldest().await?,
            Step::Compact(revision) => pair.compact(revision).await?,
        }
    }
    pair.end().await
}
