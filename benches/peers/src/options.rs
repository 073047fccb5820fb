//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::Who;
use crate::part::Part;
use crate::rows::{HELD, ROWS};

const USAGE: &str = "\
Measures etcd-lock beside Go's concurrency.Mutex, etcd-client's LockClient and plain puts, on an etcd of its own (or on
the one that ETCD_ENDPOINTS names), in alternation.

cargo bench -p peers -- [OPTIONS]

  --only NAME     only the rows whose name begins so; may be given several times
  --rounds N      rounds of each row, whose medians count (default 3)
  --seconds S     length of each measurement (default 3); before it, a third as long is not measured
  --without WHO   leaves out `go`, `lock-client` or `puts`; may be given several times
  --json FILE     writes all figures to FILE
  --charts DIR    where to draw the distribution of hand-over latencies (default target/peers)
  --names N       how many names are held in the row held-10000 (default 10000)

Rows: ";

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) only: Vec<String>,
    pub(crate) without: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) measured: Duration,
    pub(crate) json: Option<PathBuf>,
    pub(crate) charts: PathBuf,
    pub(crate) names: usize,
    /// In a process of its own: hold names at this endpoint.
    pub(crate) hold_at: Option<String>,
    /// In a process of its own: run this contestant.
    play: Option<Who>,
    at: String,
    prefix: String,
}

impl Options {
    /// The options, or what to print and the exit code.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self, (String, i32)> {
        let mut options = Self {
            only: Vec::new(),
            without: Vec::new(),
            rounds: 3,
            measured: Duration::from_secs(3),
            json: None,
            charts: work_dir(),
            names: 10_000,
            hold_at: None,
            play: None,
            at: String::new(),
            prefix: String::new(),
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| bad(&arg));
            match arg.as_str() {
                "--help" | "-h" => return Err((usage(), 0)),
                // An argument that cargo passes to every benchmark.
                "--bench" => {}
                "--only" => options.only.push(value()?),
                "--without" => options.without.push(value()?),
                "--rounds" => options.rounds = parsed(&arg, &value()?, 1..=1_000)?,
                "--seconds" => {
                    options.measured = Duration::from_secs_f64(parsed(&arg, &value()?, 0.1..=600.0)?)
                }
                "--json" => options.json = Some(value()?.into()),
                "--charts" => options.charts = value()?.into(),
                "--names" => options.names = parsed(&arg, &value()?, 1..=1_000_000)?,
                "--hold-at" => options.hold_at = Some(value()?),
                "--play" => {
                    let name = value()?;
                    let who = Who::ALL.into_iter().find(|who| who.option() == name);
                    options.play = Some(who.ok_or_else(|| bad(&arg))?);
                }
                "--at" => options.at = value()?,
                "--prefix" => options.prefix = value()?,
                _ => return Err(bad(&arg)),
            }
        }
        let rows = || ROWS.iter().map(|row| row.name).chain([HELD]);
        match options.only.iter().find(|only| !rows().any(|name| name.starts_with(only.as_str()))) {
            Some(unknown) => Err((format!("no row's name begins with {unknown}\n\n{}", usage()), 2)),
            None => Ok(options),
        }
    }

    /// The work of this process for the one that started it.
    pub(crate) fn part(&self) -> Option<Part> {
        let row = ROWS.iter().find(|row| self.only.iter().any(|only| only == row.name))?;
        let endpoints = self.at.split(',').map(str::to_owned).collect();
        Some(Part { who: self.play?, shape: row.shape, endpoints, prefix: self.prefix.clone() })
    }

    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| row.starts_with(only.as_str()))
    }

    pub(crate) fn warm_up(&self) -> Duration {
        self.measured / 3
    }
}

/// The folder for the benchmark's files, on the disk of the build, because /tmp is often in memory.
pub(crate) fn work_dir() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    dir.parent().unwrap_or(&dir).join("peers")
}

fn parsed<T>(arg: &str, value: &str, range: std::ops::RangeInclusive<T>) -> Result<T, (String, i32)>
where
    T: std::str::FromStr + PartialOrd,
{
    value.parse().ok().filter(|value| range.contains(value)).ok_or_else(|| bad(arg))
}

fn bad(arg: &str) -> (String, i32) {
    (format!("{arg} is no option, or its value is missing or cannot be\n\n{}", usage()), 2)
}

fn usage() -> String {
    let rows: Vec<&str> = ROWS.iter().map(|row| row.name).chain([HELD]).collect();
    format!("{USAGE}{}", rows.join(", "))
}
