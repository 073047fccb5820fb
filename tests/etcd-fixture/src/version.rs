//! The running release of etcd, for tests of behaviour that depends on it.

use std::fmt;

/// A release of etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Reads the release from a server's metrics.
    pub(crate) fn parse(metrics: &str) -> Self {
        let (_, rest) = metrics.split_once("etcd_server_version{server_version=\"").expect("a version");
        let (number, _) = rest.split_once('"').expect("its end");
        let mut parts = number.split(['.', '-', '+']).map(|part| part.parse().expect("a number"));
        let mut next = || parts.next().expect("three numbers");
        Self { major: next(), minor: next(), patch: next() }
    }

    /// Whether this release renews a lease without checking a token.
    pub fn renews_without_token(self) -> bool {
        let asks = match (self.major, self.minor) {
            (3, ..=4) => Self { major: 3, minor: 4, patch: 42 },
            (3, 5) => Self { major: 3, minor: 5, patch: 28 },
            _ => Self { major: 3, minor: 6, patch: 9 },
        };
        self < asks
    }

    /// Whether this release has the fix of etcd #15247: a leader that was stopped and resumes after another was elected
    /// may revoke leases that the other has renewed. Fixed in 3.4.31 and 3.5.13 for leaders whose raft loop hangs. A
    /// leader whose whole process was stopped may still check its leases after its loop's first tick and act on its old
    /// term (seen with 3.5.30).
    pub fn knows_of_15247(self) -> bool {
        let mended = match (self.major, self.minor) {
            (3, ..=4) => Self { major: 3, minor: 4, patch: 31 },
            _ => Self { major: 3, minor: 5, patch: 13 },
        };
        self >= mended
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}
