//! `bench`: what this etcd gives to locks.

mod work;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use etcd_lock::LockManager;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::exit::Failure;
use crate::options::{Bench, Connection};
use crate::output::{Line, print_lines};
use crate::percentiles::Percentiles;
use crate::settings::Settings;

/// The result of one row.
struct Row {
    what: String,
    times: Percentiles,
    took: Duration,
}

impl Row {
    fn line(&self) -> Line {
        let rate = self.times.count() as f64 / self.took.as_secs_f64();
        let millis = |part: f64| self.times.at(part).as_secs_f64() * 1e3;
        let (p50, p99) = (millis(0.5), millis(0.99));
        Line {
            text: format!("{:<44} {rate:>8.0}/s   p50 {p50:>7.2} ms   p99 {p99:>7.2} ms", self.what),
            json: json!({ "what": self.what, "per_second": rate, "p50_ms": p50, "p99_ms": p99 }),
        }
    }
}

pub(crate) fn bench(connection: &Connection, options: &Bench) -> Result<ExitCode, Failure> {
    if options.threads == 0 {
        return Err(Failure::usage("--threads must not be 0"));
    }
    let settings = Settings::read(connection)?;
    let managers = [settings.connect(settings.options()?)?, settings.connect(settings.options()?)?];
    let one = &managers[0];
    let name = options.name.clone().unwrap_or_else(|| format!("etcd-lock-bench/{}", std::process::id()));
    let (threads, time) = (options.threads, options.time);
    let bar = progress(time * 4);
    let rows = [
        measure(&bar, time, "puts under a lock, 1 thread", || work::puts(one, &name, time))?,
        measure(&bar, time, "lock and unlock, 1 thread", || work::cycles(one, &name, 1, time))?,
        measure(&bar, time, &format!("lock and unlock, {threads} threads, a name each"), || {
            work::cycles(one, &name, threads, time)
        })?,
        measure(&bar, time, "hand-over of one name between 2 sessions", || {
            work::hand_overs(&managers, &name, time)
        })?,
    ];
    bar.finish_and_clear();
    managers.iter().for_each(|manager| drop(LockManager::close(manager)));
    print_lines(&rows.each_ref().map(Row::line), options.output);
    Ok(ExitCode::SUCCESS)
}

/// A bar on standard error, if that is a terminal.
fn progress(total: Duration) -> ProgressBar {
    let shown = std::io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total.as_millis().try_into().unwrap_or(u64::MAX)), target);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Measures one row, while the bar advances with the time.
fn measure(
    bar: &ProgressBar,
    time: Duration,
    what: &str,
    work: impl FnOnce() -> Result<Vec<Duration>, Failure> + Send,
) -> Result<Row, Failure> {
    bar.set_message(what.to_owned());
    let step = Duration::from_millis(100);
    let times = std::thread::scope(|scope| {
        let running = scope.spawn(work);
        while !running.is_finished() {
            std::thread::sleep(step);
            bar.inc(step.as_millis().try_into().unwrap_or(0));
        }
        running.join().map_err(|_| Failure::internal("measuring", "its thread died"))?
    })?;
    Ok(Row { what: what.to_owned(), times: Percentiles::of(times), took: time })
}
