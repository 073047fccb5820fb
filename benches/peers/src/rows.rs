//! The rows, and their targets.

/// A situation, and the number of contenders in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Processes that contend for one name.
    HandOver { processes: usize },
    /// Sessions of a few processes that contend for one name.
    Sessions { sessions: usize },
    /// Threads of one program that contend for one name.
    Threads { threads: usize },
    /// Threads of one session, with a name each.
    Own { threads: usize },
    /// One thread: lock, and wait for the release.
    Confirmed,
    /// One thread, with several names in turn; contestants that can do not wait for the release.
    Rotating { names: usize },
}

impl Shape {
    pub(crate) fn workers(self) -> usize {
        match self {
            Self::HandOver { processes: workers }
            | Self::Sessions { sessions: workers }
            | Self::Threads { threads: workers }
            | Self::Own { threads: workers } => workers,
            Self::Confirmed | Self::Rotating { .. } => 1,
        }
    }

    pub(crate) fn processes(self) -> usize {
        match self {
            Self::HandOver { processes } => processes,
            Self::Sessions { .. } => 4,
            _ => 1,
        }
    }

    /// The workers of each process.
    pub(crate) fn workers_each(self) -> usize {
        self.workers() / self.processes()
    }

    /// Whether all contend for one name.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::HandOver { .. } | Self::Sessions { .. } | Self::Threads { .. })
    }

    /// How many names each worker locks in turn.
    pub(crate) fn names(self) -> usize {
        if let Self::Rotating { names } = self { names } else { 1 }
    }

    /// How many puts run at a time where puts are the limit: one for each lock that can be held at a time.
    pub(crate) fn putters(self) -> usize {
        if self.is_shared() { 1 } else { self.workers() }
    }
}

/// The targets of this library, by the medians.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// This many times the rate of Go's mutex.
    TimesGo(f64),
    /// This many times the rate of plain puts.
    TimesPuts(f64),
    /// A median of at most this many times that of a put.
    MedianInPuts(f64),
    /// The slowest worker gets at least this share of the mean.
    Slowest(f64),
    /// At most this share of the hand-overs takes about 100 ms.
    Hump(f64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) shape: Shape,
    /// Unrelated writes per second during the measurement.
    pub(crate) writes: u32,
    pub(crate) targets: &'static [Target],
}

/// The name of the row that is measured in another way.
pub(crate) const HELD: &str = "held-10000";

/// The row whose latencies are drawn, because its chart shows every wait for etcd's 100 ms tick.
pub(crate) const DRAWN: &str = "hand-over-4";

const NO_HUMP: Target = Target::Hump(0.01);

pub(crate) const ROWS: &[Row] = &[
    hand_over("hand-over-2", "hand-over between 2 processes", 2, 0, TWENTYFOLD),
    hand_over("hand-over-4", "hand-over between 4 processes", 4, 0, TWENTYFOLD),
    hand_over("hand-over-8", "hand-over between 8 processes", 8, 0, TENFOLD),
    hand_over("busy-2", "2 processes, 500 other writes/s", 2, 500, TWENTYFOLD),
    hand_over("busy-4", "4 processes, 500 other writes/s", 4, 500, TWENTYFOLD),
    hand_over("busy-8", "8 processes, 500 other writes/s", 8, 500, TENFOLD),
    hand_over(
        "hand-over-64",
        "hand-over between 64 processes",
        64,
        0,
        &[Target::TimesGo(2.0), Target::Slowest(0.5)],
    ),
    sessions("sessions-128", "128 sessions of 4 processes, one name", 128),
    sessions("sessions-512", "512 sessions of 4 processes, one name", 512),
    sessions("sessions-1000", "1,000 sessions of 4 processes, one name", 1_000),
    Row {
        name: "own-64",
        title: "64 threads, a name each, lock + drop",
        shape: Shape::Own { threads: 64 },
        writes: 0,
        targets: &[Target::TimesGo(3.0)],
    },
    Row {
        name: "own-512",
        title: "512 threads, a name each, lock + drop",
        shape: Shape::Own { threads: 512 },
        writes: 0,
        targets: &[Target::TimesGo(2.5)],
    },
    Row {
        name: "confirmed",
        title: "1 thread, lock + unlock()",
        shape: Shape::Confirmed,
        writes: 0,
        targets: &[Target::TimesGo(1.0), Target::MedianInPuts(1.1)],
    },
    Row {
        name: "rotating-8",
        title: "1 thread, lock + drop, 8 names in turn",
        shape: Shape::Rotating { names: 8 },
        writes: 0,
        targets: &[Target::TimesGo(1.8)],
    },
    Row {
        name: "threads-16",
        title: "16 threads of one program, one name",
        shape: Shape::Threads { threads: 16 },
        writes: 0,
        targets: &[Target::TimesPuts(0.8)],
    },
];

const TWENTYFOLD: &[Target] = &[Target::TimesGo(20.0), Target::MedianInPuts(3.0), NO_HUMP];
const TENFOLD: &[Target] = &[Target::TimesGo(10.0), Target::MedianInPuts(3.0), NO_HUMP];

const fn hand_over(
    name: &'static str,
    title: &'static str,
    processes: usize,
    writes: u32,
    targets: &'static [Target],
) -> Row {
    Row { name, title, shape: Shape::HandOver { processes }, writes, targets }
}

const fn sessions(name: &'static str, title: &'static str, sessions: usize) -> Row {
    let targets = &[Target::TimesGo(1.5)];
    Row { name, title, shape: Shape::Sessions { sessions }, writes: 0, targets }
}
