//! The simulation can find bugs: each of these defects of the protocol is caught.

use super::run;
use crate::protocol::Mutant;

/// Each defect, and the first seed that catches it.
const CAUGHT: [(Mutant, u64); 12] = [
    (Mutant::DeadlineFromReceipt, 8780),
    (Mutant::AnswersBeforeDeadline, 37),
    (Mutant::StaleTermBelieved, 159),
    (Mutant::EpochNotCompared, 0),
    (Mutant::UnknownTakenForNotDone, 0),
    (Mutant::DeletedWithoutFence, 0),
    (Mutant::PromotedWithoutRead, 0),
    (Mutant::ExistenceForCreateRevision, 1217),
    (Mutant::MissedEventsIgnored, 0),
    (Mutant::AbandonIgnoredAfterGrant, 0),
    (Mutant::KeyReusedAtHandOver, 1),
    (Mutant::KeyReusedAfterRelease, 3),
];

/// How far to look where the recorded seed does not catch its mutant any more.
const SEARCHED: u64 = 20_000;

#[test]
fn simulation_catches_every_mutant() {
    let mut stale = Vec::new();
    for (mutant, seed) in CAUGHT {
        match mutant.during(|| run(seed)) {
            Err(violation) => println!("{mutant:?}: seed {seed}: {violation}"),
            Ok(_) => {
                let found = (0..SEARCHED).find(|&seed| mutant.during(|| run(seed)).is_err());
                println!("{mutant:?}: now seed {found:?}");
                stale.push((mutant, found));
            }
        }
    }
    assert!(stale.is_empty(), "the table is not true any more; these seeds catch now: {stale:?}");
}
