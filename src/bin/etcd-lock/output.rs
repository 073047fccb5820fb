//! Tables for people, lines of JSON for programs.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table, presets};
use etcd_lock::{LockInfo, LockState};

use crate::exit::Failure;
use crate::options::Output;

/// A time span as people say it: two units at most, none below a second unless it is all there is.
pub(crate) fn age(span: Duration) -> String {
    let whole = match span {
        span if span < Duration::from_secs(1) => Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(0)),
        span if span < Duration::from_secs(3600) => Duration::from_secs(span.as_secs()),
        span => Duration::from_secs(span.as_secs() / 60 * 60),
    };
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Prints these contenders as the options want it.
pub(crate) fn print(infos: &[LockInfo], output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let terminal = out.is_terminal();
    let text = if output.json || !(terminal || output.table) {
        lines(infos)?
    } else {
        table(infos, terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    };
    // A reader that has seen enough (`head`) is no failure.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(())
}

fn lines(infos: &[LockInfo]) -> Result<String, Failure> {
    let line = |info: &LockInfo| serde_json::to_string(info).map(|line| line + "\n");
    infos.iter().map(line).collect::<Result<_, _>>().map_err(|error| Failure::internal("writing JSON", error))
}

fn table(infos: &[LockInfo], coloured: bool) -> String {
    if infos.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if coloured {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let head = ["LOCK", "STATE", "OWNER", "TOKEN", "FOR", "LEASE", "EXPIRES IN", "BEHIND"];
    table.set_header(head.map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    for info in infos {
        table.add_row(row(info));
    }
    for right in [3, 7] {
        if let Some(column) = table.column_mut(right) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    // The borders are blanks: one at the left of each line.
    text = text.lines().map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect();
    text
}

fn row(info: &LockInfo) -> [Cell; 8] {
    let absent = || "-".to_owned();
    let state = match info.state {
        LockState::Held => Cell::new(info.state).fg(Color::Green),
        _ => Cell::new(info.state).fg(Color::Yellow),
    };
    // A name or an owner may have control characters, which a terminal would obey.
    let plain = |text: &str| text.escape_debug().to_string();
    let since = info.created_at.and_then(|at| at.elapsed().ok());
    [
        Cell::new(plain(&info.key)),
        state,
        Cell::new(info.owner.as_deref().map_or("(foreign)".into(), plain)),
        Cell::new(info.token),
        Cell::new(since.map_or_else(absent, age)),
        Cell::new(info.lease_id.map_or_else(absent, |lease| format!("{lease:x}"))),
        Cell::new(info.ttl_remaining.map_or_else(absent, age)),
        Cell::new(info.waiters),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_spans_have_two_units_at_most() {
        let text = |millis| age(Duration::from_millis(millis));
        assert_eq!(text(40), "40ms");
        assert_eq!(text(3_900), "3s");
        assert_eq!(text(182_500), "3m 2s");
        assert_eq!(text(3_600_000 * 50 + 61_000), "2days 2h");
    }
}
