//! This library beside its peers, in alternation on one etcd: hand-over, throughput, and what many names cost.
//!
//! `cargo bench -p peers -- --help` lists the options. Without any, it takes some ten minutes and prints one table. It
//! starts an etcd for each row, on the disk of the build directory and with etcd's default settings; all contestants of
//! a row use the same one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a benchmark fails by panicking")]

mod chart;
mod crew;
mod go;
mod held;
mod numbers;
mod options;
mod ours;
mod part;
mod report;
mod rows;
mod tasks;
mod window;

use std::time::{Duration, Instant};

use etcd_fixture::Etcd;
use go::Go;
use indicatif::{ProgressBar, ProgressStyle};
use options::{Options, work_dir};
use plotters::style::RGBColor;
use report::Measured;
use rows::{DRAWN, HELD, ROWS, Row};
use serde_json::{Value, json};
use window::Figures;

/// A contestant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Ours,
    Go,
    LockClient,
    Puts,
}

impl Who {
    const ALL: [Self; 4] = [Self::Ours, Self::Go, Self::LockClient, Self::Puts];

    fn title(self) -> &'static str {
        match self {
            Self::Ours => "etcd-lock",
            Self::Go => "Go concurrency.Mutex",
            Self::LockClient => "etcd-client's LockClient",
            Self::Puts => "plain puts",
        }
    }

    /// Its name in the options.
    fn option(self) -> &'static str {
        match self {
            Self::Ours => "etcd-lock",
            Self::Go => "go",
            Self::LockClient => "lock-client",
            Self::Puts => "puts",
        }
    }

    fn colour(self) -> RGBColor {
        match self {
            Self::Ours => RGBColor(0, 114, 178),
            Self::Go => RGBColor(213, 94, 0),
            Self::LockClient => RGBColor(0, 158, 115),
            Self::Puts => RGBColor(110, 110, 110),
        }
    }
}

/// One measurement, except for its contestant.
#[derive(Debug)]
struct Setting {
    row: &'static Row,
    endpoints: Vec<String>,
    /// The prefix of all its names; no two measurements share one.
    prefix: String,
    warm_up: Duration,
    measured: Duration,
}

fn main() {
    let options = Options::parse(std::env::args().skip(1)).unwrap_or_else(|(text, code)| {
        println!("{text}");
        std::process::exit(code);
    });
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("etcd_lock=warn")).init();
    if let Some(endpoints) = &options.hold_at {
        return held::hold(endpoints, options.names);
    }
    if let Some(part) = options.part() {
        return crew::play(&part);
    }
    std::fs::create_dir_all(work_dir()).unwrap();
    std::fs::create_dir_all(&options.charts).unwrap();
    let wanted: Vec<&Row> = ROWS.iter().filter(|row| options.wants(row.name)).collect();
    let mut bench = Bench::new(options);
    let rows: Vec<Measured> = wanted.into_iter().map(|row| bench.measure(row)).collect();
    let held = bench.options.wants(HELD).then(|| bench.hold());
    bench.progress.finish_and_clear();
    bench.tell(&rows, held.as_ref());
}

/// On the disk of the build, because /tmp is often in memory.
fn start_etcd() -> Etcd {
    Etcd::named_or_private(&work_dir()).unwrap_or_else(|why| {
        eprintln!("No etcd to measure on: {why}");
        std::process::exit(1)
    })
}

struct Bench {
    options: Options,
    contestants: Vec<Who>,
    go: Option<Go>,
    progress: ProgressBar,
    /// etcd's version.
    etcd: String,
    started: Instant,
}

impl Bench {
    fn new(options: Options) -> Self {
        let mut contestants = Who::ALL.to_vec();
        contestants.retain(|who| !options.without.iter().any(|without| without == who.option()));
        let mut go = None;
        if contestants.contains(&Who::Go) && ROWS.iter().any(|row| options.wants(row.name)) {
            eprintln!("building the Go program (the first time takes a while)");
            match Go::build() {
                Ok(built) => go = Some(built),
                Err(why) => eprintln!("Go's concurrency.Mutex is left out. {why}\n"),
            }
        }
        contestants.retain(|who| *who != Who::Go || go.is_some());
        let rows = ROWS.iter().filter(|row| options.wants(row.name)).count();
        let steps = rows * options.rounds * contestants.len() + usize::from(options.wants(HELD));
        let style = "{bar:30} {pos}/{len}  {elapsed} of about {duration}  {msg}";
        let progress = ProgressBar::new(steps as u64);
        progress.set_style(ProgressStyle::with_template(style).unwrap());
        Self { options, contestants, go, progress, etcd: String::new(), started: Instant::now() }
    }

    fn measure(&mut self, row: &'static Row) -> Measured {
        let etcd = start_etcd();
        self.ask_version(etcd.endpoints());
        let rounds = self.contestants.iter().map(|who| (*who, Vec::new())).collect();
        let mut measured = Measured { row, rounds, writes: Vec::new() };
        for round in 0..self.options.rounds {
            // The order varies, so that no contestant always comes first or after the same other one.
            let count = self.contestants.len();
            for turn in 0..count {
                let index = if round % 2 == 0 { turn } else { count - 1 - turn };
                let who = self.contestants[index];
                let say = format!("{}: {}", row.title, who.title());
                if self.progress.is_hidden() && round == 0 {
                    eprintln!("{say}");
                }
                self.progress.set_message(say);
                let setting = Setting {
                    row,
                    endpoints: etcd.endpoints().to_vec(),
                    prefix: format!("/bench/{}/{}/{}-{index}", std::process::id(), row.name, round),
                    warm_up: self.options.warm_up(),
                    measured: self.options.measured,
                };
                let writes = tasks::Writes::start(&setting);
                let figures = self.run(who, &setting);
                measured.writes.extend(writes.map(tasks::Writes::stop));
                measured.rounds[index].1.push(figures);
                self.progress.inc(1);
            }
        }
        measured
    }

    fn run(&self, who: Who, setting: &Setting) -> Figures {
        match (who, &self.go) {
            (Who::Go, Some(go)) => crew::run(who, setting, || go.command(setting)),
            (Who::Go, None) => Figures::default(),
            _ => crew::run(who, setting, || crew::of_this_program(who, setting)),
        }
    }

    fn hold(&mut self) -> held::Held {
        let etcd = start_etcd();
        self.ask_version(etcd.endpoints());
        self.progress.set_message(format!("{} names held", self.options.names));
        let held = held::measure(&self.options, etcd.endpoints());
        self.progress.inc(1);
        held
    }

    fn ask_version(&mut self, endpoints: &[String]) {
        if self.etcd.is_empty() {
            self.etcd = tasks::runtime().block_on(async {
                let mut client = etcd_client::Client::connect(endpoints, None).await.unwrap();
                client.status().await.unwrap().version().to_owned()
            });
        }
    }

    fn tell(&self, rows: &[Measured], held: Option<&held::Held>) {
        let machine = self.machine();
        println!(
            "etcd {}, {} processors, load {} at the end; {} rounds of {} s each; {:.0} s in all\n",
            self.etcd,
            machine["processors"],
            machine["load"].as_str().unwrap_or("unknown"),
            self.options.rounds,
            self.options.measured.as_secs_f64(),
            self.started.elapsed().as_secs_f64()
        );
        println!("{}", report::text(rows, held));
        for row in rows.iter().filter(|row| row.row.name == DRAWN) {
            let file = self.options.charts.join("hand-over.svg");
            chart::draw(row, &file).unwrap();
            println!("Drawn: {}", file.display());
        }
        if let Some(file) = &self.options.json {
            let json = serde_json::to_string_pretty(&report::json(rows, held, &machine)).unwrap();
            std::fs::write(file, json).unwrap();
            println!("Written: {}", file.display());
        }
    }

    fn machine(&self) -> Value {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load: Vec<&str> = load.split(' ').take(3).collect();
        json!({
            "etcd": self.etcd,
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "load": load.join(" "),
            "rounds": self.options.rounds,
            "seconds": self.options.measured.as_secs_f64(),
        })
    }
}
