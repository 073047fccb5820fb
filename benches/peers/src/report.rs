//! Medians, ratios, and the table at the end.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Who;
use crate::held::{self, Held};
use crate::numbers::{median, rounded};
use crate::rows::{Row, Target};
use crate::window::Figures;

/// A measured row: the rounds of each contestant.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) row: &'static Row,
    pub(crate) rounds: Vec<(Who, Vec<Figures>)>,
    /// Unrelated writes per second, for rows that have them.
    pub(crate) writes: Vec<f64>,
}

impl Measured {
    pub(crate) fn of(&self, who: Who) -> &[Figures] {
        self.rounds.iter().find(|(other, _)| *other == who).map_or(&[], |(_, figures)| figures)
    }

    fn median(&self, who: Who, figure: impl Fn(&Figures) -> f64) -> Option<f64> {
        let rounds = self.of(who);
        (!rounds.is_empty()).then(|| median(rounds.iter().map(figure).collect()))
    }

    /// The median of the rounds' ratios: a disturbance of one round affects both sides of its ratio.
    fn ratio(
        &self,
        (who, figure): (Who, impl Fn(&Figures) -> f64),
        (base, of_base): (Who, impl Fn(&Figures) -> f64),
    ) -> Option<f64> {
        let pairs = self.of(who).iter().zip(self.of(base));
        let ratios: Vec<f64> =
            pairs.map(|(who, base)| figure(who) / of_base(base)).filter(|ratio| ratio.is_finite()).collect();
        (!ratios.is_empty()).then(|| median(ratios))
    }

    /// In words, as measured; `None` if there is nothing to compare with.
    fn judge(&self, target: Target) -> Option<(String, f64, bool)> {
        let p50 = |figures: &Figures| figures.quantile(0.5).as_secs_f64();
        Some(match target {
            Target::TimesGo(least) => {
                let ratio = self.ratio((Who::Ours, Figures::rate), (Who::Go, Figures::rate))?;
                (format!("rate >= {least} x Go's"), ratio, ratio >= least)
            }
            Target::TimesPuts(least) => {
                let ratio = self.ratio((Who::Ours, Figures::rate), (Who::Puts, Figures::rate))?;
                (format!("rate >= {least} x sequential puts"), ratio, ratio >= least)
            }
            Target::MedianInPuts(most) => {
                let ratio = self.ratio((Who::Ours, p50), (Who::Puts, p50))?;
                (format!("p50 <= {most} x a put's"), ratio, ratio <= most)
            }
            Target::Slowest(least) => {
                let slowest = self.median(Who::Ours, Figures::slowest)?;
                (format!("the slowest gets >= {least} of the mean"), slowest, slowest >= least)
            }
            Target::Hump(most) => {
                let hump = self.median(Who::Ours, Figures::hump)?;
                (format!("part that takes 50 to 200 ms <= {most}"), hump, hump <= most)
            }
        })
    }

    fn judged(&self) -> impl Iterator<Item = (String, f64, bool)> {
        self.row.targets.iter().filter_map(|target| self.judge(*target))
    }

    fn lines(&self, out: &mut String) {
        for (who, rounds) in &self.rounds {
            let number = |figure: Option<f64>| figure.map_or("".into(), |figure| format!("{figure:.2}"));
            let rates: Vec<f64> = rounds.iter().map(Figures::rate).collect();
            let spread = rates.iter().copied().fold(f64::INFINITY, f64::min)
                ..rates.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                out,
                "| {:<38} | {:<26} | {:>8.0} | {:>15} | {:>6} | {:>6} | {:>8} | {:>8} | {:>8} | {:<24} |",
                self.row.title,
                who.title(),
                median(rates),
                format!("{:.0}..{:.0}", spread.start, spread.end),
                number(self.ratio((*who, Figures::rate), (Who::Go, Figures::rate))),
                number(self.ratio((*who, Figures::rate), (Who::Puts, Figures::rate))),
                millis(self.median(*who, |figures| figures.quantile(0.5).as_secs_f64())),
                millis(self.median(*who, |figures| figures.quantile(0.99).as_secs_f64())),
                millis(self.median(*who, |figures| figures.quantile(0.999).as_secs_f64())),
                self.notes(*who),
            );
        }
    }

    fn notes(&self, who: Who) -> String {
        let mut notes = Vec::new();
        let rounds = self.of(who);
        let batches: Option<Vec<f64>> = rounds.iter().map(|figures| figures.batch).collect();
        if let Some(batches) = batches.filter(|batches| !batches.is_empty()) {
            notes.push(format!("{:.1} steps/txn", median(batches)));
        }
        if self.row.shape.is_shared() && who != Who::Puts {
            let slowest = self.median(who, Figures::slowest).unwrap_or(0.0);
            notes.push(format!("slowest {:.0} %", 100.0 * slowest));
        }
        notes.join(", ")
    }

    fn json(&self) -> Value {
        let micros = |time: Duration| rounded(time.as_secs_f64() * 1e6);
        let contestants = self.rounds.iter().map(|(who, rounds)| {
            let list = |figure: &dyn Fn(&Figures) -> f64| -> Vec<f64> {
                rounds.iter().map(|figures| rounded(figure(figures))).collect()
            };
            json!({
                "who": who.title(),
                "rate": self.median(*who, Figures::rate).map(rounded),
                "rates": list(&Figures::rate),
                "times_go": self.ratio((*who, Figures::rate), (Who::Go, Figures::rate)).map(rounded),
                "times_puts": self.ratio((*who, Figures::rate), (Who::Puts, Figures::rate)).map(rounded),
                "p50_micros": list(&|figures| micros(figures.quantile(0.5))),
                "p90_micros": list(&|figures| micros(figures.quantile(0.9))),
                "p99_micros": list(&|figures| micros(figures.quantile(0.99))),
                "p999_micros": list(&|figures| micros(figures.quantile(0.999))),
                "max_micros": list(&|figures| micros(figures.quantile(1.0))),
                "part_50_to_200_ms": list(&Figures::hump),
                "slowest_of_mean": list(&Figures::slowest),
                "steps_per_transaction": rounds.iter().map(|f| f.batch.map(rounded)).collect::<Vec<_>>(),
            })
        });
        let targets = self
            .judged()
            .map(|(target, is, reached)| json!({ "target": target, "is": rounded(is), "reached": reached }));
        json!({
            "name": self.row.name,
            "title": self.row.title,
            "other_writes_per_second": self.writes.iter().map(|rate| rounded(*rate)).collect::<Vec<_>>(),
            "contestants": contestants.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}

/// All measurements, as text.
pub(crate) fn text(rows: &[Measured], held: Option<&Held>) -> String {
    let mut out = String::new();
    if !rows.is_empty() {
        let _ = writeln!(
            out,
            "| {:<38} | {:<26} | {:>8} | {:>15} | {:>6} | {:>6} | {:>8} | {:>8} | {:>8} | {:<24} |\n\
             |:{:-<38}-|:{:-<26}-|-{:->8}:|-{:->15}:|-{:->6}:|-{:->6}:|-{:->8}:|-{:->8}:|-{:->8}:|:{:-<24}-|",
            "situation",
            "who",
            "each s",
            "rounds",
            "x Go",
            "x puts",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "notes",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
        );
        rows.iter().for_each(|row| row.lines(&mut out));
        let _ = writeln!(out, "\n{LEGEND}");
    }
    if let Some(held) = held {
        held_text(held, &mut out);
    }
    out.push_str("\nTargets\n");
    for row in rows {
        for (target, is, reached) in row.judged() {
            line(&mut out, row.row.title, &target, &format!("{is:.2}"), reached);
        }
        if !row.writes.is_empty() && median(row.writes.clone()) < 0.9 * f64::from(row.row.writes) {
            let _ = writeln!(out, "  {}: etcd did not take as many writes as that", row.row.title);
        }
    }
    if let Some(held) = held {
        let title = "names held";
        if let Some(bytes) = held.bytes_each {
            let target = format!("bytes each <= {}", held::BYTES_EACH);
            line(&mut out, title, &target, &format!("{bytes:.0}"), bytes <= held::BYTES_EACH);
        }
        let list = held.seconds_to_list;
        let target = format!("seconds to list them <= {}", held::LIST_SECONDS);
        line(&mut out, title, &target, &format!("{list:.2}"), list <= held::LIST_SECONDS);
        let cpu = held.cpu_percent_with_all;
        let target = format!("idle CPU <= {} %", held::CPU_PERCENT);
        line(&mut out, title, &target, &format!("{cpu:.2}"), cpu <= held::CPU_PERCENT);
        let same = held.renewals_with_all.abs_diff(held.renewals_with_none) <= 1;
        let is = format!("{}, {}", held.renewals_with_none, held.renewals_with_all);
        line(&mut out, title, "as many renewals as with none", &is, same);
    }
    out
}

const LEGEND: &str = "\
Medians of the rounds; a ratio is the median of the rounds' ratios. p50 and p99: with one name, from one's release to the
next one's grant; with names of their own, of the lock call; of puts, of a put. Puts go one at a time where there is one
name, else one for each thread. \"steps\" are acquires and releases, \"slowest\" is the slowest worker's part of the mean.";

fn held_text(held: &Held, out: &mut String) {
    let bytes = held.bytes_each.map_or("unknown".into(), |bytes| format!("{bytes:.0} bytes"));
    let _ = writeln!(
        out,
        "\n{} names held by one manager: taken in {:.2} s, released in {:.2} s, {bytes} of memory each, list_locks {:.3} s;\n\
         in {:.0} idle seconds {} renewals (with none held: {}), {} other requests, {:.2} % CPU (with none held: {:.2} %)",
        held.names,
        held.seconds_to_take,
        held.seconds_to_release,
        held.seconds_to_list,
        held.idle_seconds,
        held.renewals_with_all,
        held.renewals_with_none,
        held.requests_with_all,
        held.cpu_percent_with_all,
        held.cpu_percent_with_none,
    );
}

fn line(out: &mut String, title: &str, target: &str, is: &str, reached: bool) {
    let verdict = if reached { "reached" } else { "MISSED" };
    let _ = writeln!(out, "  {title:<38}  {target:<40}  {is:>8}  {verdict}");
}

pub(crate) fn json(rows: &[Measured], held: Option<&Held>, machine: &Value) -> Value {
    json!({ "machine": machine, "rows": rows.iter().map(Measured::json).collect::<Vec<_>>(), "held": held })
}

fn millis(seconds: Option<f64>) -> String {
    seconds.filter(|seconds| *seconds > 0.0).map_or("".into(), |seconds| format!("{:.2}", seconds * 1e3))
}
