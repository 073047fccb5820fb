//! Releases of etcd with defects that concern locks.

/// A defect, and the releases that have its correction: a patch number for each of the lines 3.4, 3.5 and 3.6.
struct Defect {
    fixed: [u32; 3],
    what: &'static str,
}

/// The newest first. `guarantees` and `operations` in the documentation say what each of them costs.
const DEFECTS: [Defect; 5] = [
    Defect { fixed: [42, 28, 9], what: "permissions of renewals and nested transactions are not checked" },
    Defect { fixed: [42, 28, 0], what: "reads can be stale after a member was paused (#20418)" },
    Defect { fixed: [38, 23, 0], what: "a renewal succeeds on a lease that is revoked (#20590)" },
    Defect { fixed: [36, 18, 0], what: "watch events can get lost (#17529, #18089, #19179)" },
    Defect { fixed: [31, 13, 0], what: "a deposed leader still renews leases (#15247)" },
];

/// The defects of a release such as `3.5.16`; an error for one that this program knows nothing about.
pub(super) fn defects(version: &str) -> Result<Vec<&'static str>, String> {
    let unknown = || format!("release {version} is not known to this program");
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    let mut number = || numbers.next().and_then(Result::ok).ok_or_else(unknown);
    let (major, minor, patch) = (number()?, number()?, number()?);
    let line = match (major, minor) {
        (3, 4..=6) => usize::try_from(minor - 4).map_err(|_| unknown())?,
        (3, 0..4) => {
            return Err(format!("release {version} is older than 3.4, which is the oldest that works"));
        }
        _ => return Ok(Vec::new()),
    };
    Ok(DEFECTS.iter().filter(|defect| patch < defect.fixed[line]).map(|defect| defect.what).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_the_defects_that_were_fixed_after_it() {
        assert_eq!(defects("3.4.23").unwrap().len(), 5);
        assert_eq!(defects("3.5.16").unwrap().len(), 4);
        assert_eq!(defects("3.5.28").unwrap(), [""; 0]);
        assert_eq!(defects("3.6.5").unwrap().len(), 1);
        assert_eq!(defects("3.7.0-alpha.1").unwrap(), [""; 0]);
        assert!(defects("3.3.10").is_err() && defects("unknown").is_err());
    }
}
