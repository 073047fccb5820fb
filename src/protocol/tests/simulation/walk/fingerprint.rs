//! States that differ only in ids, leases, revisions and times have the same fingerprint.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};

/// A walk's revisions begin here, so a number from here on is a revision.
pub(super) const FIRST_REVISION: i64 = 1_000_000;

/// A number from here on is a lease.
const FIRST_LEASE: i64 = 0x1ea5_e001;

/// Ids that are assigned by counting; their numbers do not matter.
const COUNTED: [&str; 6] = ["RequestId", "WatchId", "HoldId", "QueueId", "Ticket", "Watcher"];

/// The fingerprint of a state, made from the text of its parts.
pub(super) struct Fingerprints {
    hashers: [RandomState; 2],
}

impl Fingerprints {
    pub(super) fn new() -> Self {
        Self { hashers: [RandomState::new(), RandomState::new()] }
    }

    pub(super) fn of(&self, printed: &str) -> u128 {
        let canonical = canonical(printed);
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(&canonical));
        u128::from(high) << 64 | u128::from(low)
    }
}

/// Numbers ids and leases by first occurrence and revisions by order, and removes times and values.
pub(super) fn canonical(printed: &str) -> String {
    let words = words(printed);
    let mut revisions: BTreeSet<i64> = BTreeSet::new();
    revisions.extend(words.iter().filter_map(|word| word.parse().ok()).filter(|number| is_revision(*number)));
    let ranks: HashMap<i64, usize> = revisions.iter().enumerate().map(|(rank, &it)| (it, rank)).collect();
    let mut names: HashMap<(&str, &str), usize> = HashMap::new();
    let mut leases: HashMap<i64, usize> = HashMap::new();
    let mut out = String::with_capacity(printed.len() / 2);
    let mut at = 0;
    while at < words.len() {
        let word = words[at];
        let lease = lease(word);
        if COUNTED.contains(&word) && words.get(at + 1) == Some(&"(") {
            let next = names.len();
            let name = names.entry((word, words[at + 2])).or_insert(next);
            let _ = write!(out, "{word}#{name}");
            at += 4;
            continue;
        }
        if word == "@" || word == "value" && words.get(at + 1) == Some(&":") {
            // Skip a time or a value up to its end.
            let end = if word == "@" { &[",", ")", "}", " ", "]"][..] } else { &["]"][..] };
            while at < words.len() && !end.contains(&words[at]) {
                at += 1;
            }
            continue;
        }
        match (lease, word.parse::<i64>()) {
            (Some(lease), _) => {
                let next = leases.len();
                let _ = write!(out, "L{}", leases.entry(lease).or_insert(next));
            }
            (None, Ok(number)) if is_revision(number) => {
                let _ = write!(out, "R{}", ranks[&number]);
            }
            _ => out.push_str(word),
        }
        at += 1;
    }
    out
}

fn is_revision(number: i64) -> bool {
    (FIRST_REVISION - 1..FIRST_LEASE).contains(&number)
}

/// Reads a lease, as a number or in hexadecimal digits as in a key.
fn lease(word: &str) -> Option<i64> {
    let number =
        if word.starts_with("1ea5e") { i64::from_str_radix(word, 16).ok() } else { word.parse().ok() };
    number.filter(|&number| number >= FIRST_LEASE)
}

/// Splits into runs of letters and digits, and single other characters.
fn words(printed: &str) -> Vec<&str> {
    let mut words = Vec::with_capacity(printed.len() / 3);
    let mut rest = printed;
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphanumeric() {
            rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(length);
        words.push(word);
        rest = after;
    }
    words
}

#[test]
fn names_times_and_revisions_do_not_change_a_fingerprint() {
    let one = "Ticket(7) at @1000.5s, created: 1000003, seen: 1000009, \"a/1ea5e001-0\" of 514187265, value: [1, 2]";
    let other =
        "Ticket(9) at @2.7ms, created: 1000005, seen: 1000006, \"a/1ea5e004-0\" of 514187268, value: [3]";
    assert_eq!(canonical(one), canonical(other));
    assert_ne!(
        canonical(one),
        canonical(&other.replace("1000005", "1000007")),
        "the order of revisions matters"
    );
    assert_ne!(canonical(one), canonical(&other.replace("a/", "b/")));
}
