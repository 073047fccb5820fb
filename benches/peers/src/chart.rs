//! A chart of the hand-over times: one strip for each contestant, on a logarithmic scale.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::FontFamily;

use crate::Who;
use crate::report::Measured;
use crate::window::Figures;

const WIDTH: u32 = 860;
const STRIP: u32 = 120;
const TOP: u32 = 44;
const BOTTOM: u32 = 46;

/// The scale: from 0.1 ms to 1 s, in bins of a twentieth of a decade.
const DECADES: std::ops::Range<f64> = -1.0..3.0;
const BIN: f64 = 0.05;

pub(crate) fn draw(measured: &Measured, file: &Path) -> Result<(), Box<dyn Error>> {
    let strips: Vec<(Who, Vec<f64>)> = measured
        .rounds
        .iter()
        .map(|(who, rounds)| (*who, shares(rounds)))
        .filter(|(_, shares)| shares.iter().any(|share| *share > 0.0))
        .collect();
    let height = TOP + BOTTOM + STRIP * u32::try_from(strips.len())?;
    let area = SVGBackend::new(file, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("From release to grant: {}", measured.row.title);
    area.draw(&Text::new(title, (16, 14), font(18)))?;
    let (strips_area, axis) =
        area.margin(TOP, 0, 0, 0).split_vertically(STRIP * u32::try_from(strips.len())?);
    for ((who, shares), strip) in strips.iter().zip(strips_area.split_evenly((strips.len(), 1))) {
        draw_strip(*who, shares, median_of(measured, *who), &strip)?;
    }
    draw_axis(&axis)?;
    area.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_strip(who: Who, shares: &[f64], median: f64, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let highest = shares.iter().copied().fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin_left(16)
        .margin_right(16)
        .margin_top(26)
        .build_cartesian_2d(DECADES, 0.0..highest)?;
    for decade in marks() {
        chart.draw_series(LineSeries::new([(decade, 0.0), (decade, highest)], RGBColor(225, 225, 225)))?;
    }
    let colour = who.colour();
    let bars = shares.iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(bin, share)| {
        let left = DECADES.start + bin as f64 * BIN;
        Rectangle::new([(left, 0.0), (left + BIN, *share)], colour.mix(0.85).filled())
    });
    chart.draw_series(bars)?;
    chart.draw_series(LineSeries::new([(DECADES.start, 0.0), (DECADES.end, 0.0)], BLACK.mix(0.6)))?;
    let caption = format!("{}, median {median:.1} ms", who.title());
    area.draw(&Text::new(caption, (16, 6), font(14).color(&colour)))?;
    Ok(())
}

fn draw_axis(area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let pixels = f64::from(WIDTH - 32);
    for decade in marks().chain([DECADES.end]) {
        let x = 16.0 + pixels * (decade - DECADES.start) / (DECADES.end - DECADES.start);
        let name = if decade < 0.0 { "0.1 ms".into() } else { format!("{} ms", 10f64.powf(decade)) };
        let name = if decade >= 3.0 { "1 s".into() } else { name };
        // Text extends to the right of its position.
        let left = if decade <= DECADES.start { 0.0 } else { 7.0 * name.len() as f64 / 2.0 };
        let left = if decade >= DECADES.end { 18.0 } else { left };
        area.draw(&Text::new(name, ((x - left) as i32, 6), font(12)))?;
    }
    let note = "part of all hand-overs, by how long they took";
    area.draw(&Text::new(note, (16, 24), font(12).color(&BLACK.mix(0.6))))?;
    Ok(())
}

fn marks() -> impl Iterator<Item = f64> {
    [-1.0, 0.0, 1.0, 2.0].into_iter()
}

fn font(size: u32) -> TextStyle<'static> {
    (FontFamily::SansSerif, size).into_text_style(&(WIDTH, 200))
}

/// The share of the hand-overs of all rounds in each bin.
fn shares(rounds: &[Figures]) -> Vec<f64> {
    let bins = ((DECADES.end - DECADES.start) / BIN).round() as usize;
    let mut counts = vec![0.0; bins];
    let all: Vec<u64> = rounds.iter().flat_map(|figures| figures.nanos.iter().copied()).collect();
    for nanos in &all {
        let decade = (*nanos as f64 / 1e6).max(1e-6).log10();
        let bin = ((decade - DECADES.start) / BIN).clamp(0.0, bins as f64 - 1.0) as usize;
        counts[bin] += 1.0 / all.len() as f64;
    }
    counts
}

/// In milliseconds, over all rounds.
fn median_of(measured: &Measured, who: Who) -> f64 {
    let nanos = measured.of(who).iter().flat_map(|figures| figures.nanos.iter().copied()).collect();
    Figures { nanos, ..Figures::default() }.quantile(0.5).as_secs_f64() * 1e3
}
