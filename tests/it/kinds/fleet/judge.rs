//! Judges the holds of a fleet. It shares no code with the library.

use std::collections::{BTreeMap, HashMap};

/// The holds of all processes, as their own lines tell.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// By process and number.
    open: HashMap<(String, String), Hold>,
    over: Vec<Hold>,
}

/// One hold, on the clock that all processes of a machine share.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "who it is, in messages")]
struct Hold {
    who: String,
    name: String,
    token: u64,
    /// A writer takes one of one, a reader one of very many.
    take: u32,
    limit: u32,
    from: u64,
    to: u64,
}

impl Hold {
    fn kind(&self) -> &'static str {
        match self.limit {
            1 => "exclusive",
            u32::MAX => "shared",
            _ => "permits",
        }
    }
}

impl Judge {
    /// Takes in a line of a process.
    pub(super) fn hear(&mut self, who: &str, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().expect("a number");
        match words[..] {
            ["from", id, from, token, take, limit, name] => {
                let hold = Hold {
                    who: format!("{who}/{id}"),
                    name: name.into(),
                    token: number(token),
                    take: take.parse().expect("a number"),
                    limit: limit.parse().expect("a number"),
                    from: number(from),
                    to: u64::MAX,
                };
                self.open.insert((who.into(), id.into()), hold);
            }
            ["to", id, to] => {
                let hold = self.open.remove(&(who.into(), id.into())).expect("its start was told");
                self.over.push(Hold { to: number(to), ..hold });
            }
            _ => panic!("not a line of a member: {line:?}"),
        }
    }

    /// The process was dead by then, so its holds are over: it can do nothing under them any more.
    pub(super) fn died(&mut self, who: &str, dead: u64) {
        let open = std::mem::take(&mut self.open);
        for ((owner, id), hold) in open {
            if owner == who {
                self.over.push(Hold { to: dead, ..hold });
            } else {
                self.open.insert((owner, id), hold);
            }
        }
    }

    pub(super) fn summary(&self) -> String {
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        self.over.iter().for_each(|hold| *kinds.entry(hold.kind()).or_default() += 1);
        format!("holds: {kinds:?}; at most together: {:?}", self.together())
    }

    /// The most holds of each kind at one instant.
    fn together(&self) -> BTreeMap<&str, usize> {
        let mut most: BTreeMap<&str, usize> = BTreeMap::new();
        for hold in &self.over {
            let beside = |other: &&Hold| {
                (other.kind(), &*other.name) == (hold.kind(), &*hold.name)
                    && (other.from..=other.to).contains(&hold.from)
            };
            let count = self.over.iter().filter(beside).count();
            let kind = most.entry(hold.kind()).or_default();
            *kind = (*kind).max(count);
        }
        most
    }

    /// Panics unless all that held a lock at one instant could hold it together, and tokens grow from each writer to all
    /// that come after it.
    #[track_caller]
    pub(super) fn judge(&self) {
        assert!(self.open.is_empty(), "{:?}", self.open);
        let violations = self.violations();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
        let together = self.together();
        for kind in ["exclusive", "shared", "permits"] {
            assert!(self.over.iter().filter(|hold| hold.kind() == kind).count() > 10, "too few {kind} holds");
        }
        assert!(together["shared"] > 1 && together["permits"] > 1, "nobody held it together: {together:?}");
    }

    fn violations(&self) -> Vec<String> {
        let mut names: BTreeMap<&str, Vec<&Hold>> = BTreeMap::new();
        self.over.iter().for_each(|hold| names.entry(&hold.name).or_default().push(hold));
        names.into_values().flat_map(violations_of).collect()
    }
}

/// The violations of one lock.
fn violations_of(mut holds: Vec<&Hold>) -> Vec<String> {
    holds.sort_by_key(|hold| hold.from);
    let mut violations = Vec::new();
    let mut now: Vec<&Hold> = Vec::new();
    let (mut writer, mut any) = (0, 0);
    for hold in holds {
        now.retain(|other| other.to > hold.from);
        now.push(hold);
        let taken: u64 = now.iter().map(|hold| u64::from(hold.take)).sum();
        let limit = now.iter().map(|hold| hold.limit).min().unwrap_or(u32::MAX);
        if taken > u64::from(limit) {
            violations.push(format!("{taken} of {limit} taken: {now:#?}"));
        }
        if hold.token <= writer || hold.limit == 1 && hold.token <= any {
            violations.push(format!("its token is not greater than {any}, the writers' {writer}: {hold:?}"));
        }
        if hold.limit == 1 {
            writer = writer.max(hold.token);
        }
        any = any.max(hold.token);
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::Judge;

    fn violations(lines: &[&str]) -> usize {
        let mut judge = Judge::default();
        lines.iter().for_each(|line| judge.hear("m", line));
        judge.died("m", u64::MAX - 1);
        judge.violations().len()
    }

    const MANY: &str = "4294967295";

    #[test]
    fn readers_may_overlap_and_a_writer_beside_one_is_a_violation() {
        let reader = |id: &str, from: u64, token: u64| format!("from {id} {from} {token} 1 {MANY} a");
        let (one, other) = (reader("1", 10, 3), reader("2", 20, 4));
        assert_eq!(violations(&[&one, &other, "to 1 30", "to 2 40"]), 0);
        assert_eq!(violations(&[&one, "from 2 20 4 1 1 a", "to 1 30", "to 2 40"]), 1);
        assert_eq!(violations(&[&one, "from 2 30 4 1 1 a", "to 1 30", "to 2 40"]), 0);
        assert_eq!(violations(&[&one, "from 2 20 4 1 1 b", "to 1 30", "to 2 40"]), 0, "another lock");
        assert_eq!(violations(&["from 2 20 4 1 1 a", &one.replace(" 10 3 ", " 30 5 ")]), 1, "killed late");
    }

    #[test]
    fn more_permits_than_the_smallest_limit_are_a_violation() {
        let lines = |limit: u32| {
            [
                "from 1 10 3 2 4 a".to_owned(),
                format!("from 2 20 4 2 {limit} a"),
                "to 1 30".into(),
                "to 2 40".into(),
            ]
        };
        let of = |limit| violations(&lines(limit).iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((of(4), of(3)), (0, 1));
    }

    #[test]
    fn a_token_that_is_not_greater_than_a_writer_s_is_a_violation() {
        let after = |token: u64| format!("from 2 40 {token} 1 {MANY} a");
        for (token, expected) in [(4, 0), (3, 1), (2, 1)] {
            let lines = ["from 1 10 3 1 1 a", "to 1 30", &after(token), "to 2 50"];
            assert_eq!(violations(&lines), expected, "{token}");
        }
    }
}
