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
        span if span < Duration::from_secs(1) => {
            Duration::from_millis(u64::try_from(span.as_millis()).unwrap_or(0))
        }
        span if span < Duration::from_secs(3600) => Duration::from_secs(span.as_secs()),
        span => Duration::from_secs(span.as_secs() / 60 * 60),
    };
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A line of a report, for people and for programs.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    pub(crate) json: serde_json::Value,
}

/// Prints a report as the options want it; false if nobody reads it any more.
pub(crate) fn print_lines(lines: &[Line], output: Output) -> bool {
    let as_json = wants_json(output);
    let line = |line: &Line| if as_json { format!("{}\n", line.json) } else { format!("{}\n", line.text) };
    write(&lines.iter().map(line).collect::<String>())
}

/// Prints these contenders as the options want it.
pub(crate) fn print(infos: &[LockInfo], output: Output) -> Result<(), Failure> {
    let coloured =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    write(&if wants_json(output) { json(infos)? } else { table(infos, coloured) });
    Ok(())
}

fn wants_json(output: Output) -> bool {
    output.json || !(output.table || std::io::stdout().is_terminal())
}

fn write(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough (`head`) is no failure.
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn json(infos: &[LockInfo]) -> Result<String, Failure> {
    let line = |info: &LockInfo| serde_json::to_string(info).map(|line| line + "\n");
    infos.iter().map(line).collect::<Result<_, _>>().map_err(|error| Failure::internal("writing JSON", error))
}

fn table(infos: &[LockInfo], coloured: bool) -> String {
    if infos.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).force_no_tty();
    if coloured {
        table.enforce_styling().style_text_only();
    }
    let with_notes = infos.iter().any(|info| info.note.is_some());
    let mut head = vec!["LOCK", "STATE", "OWNER", "TOKEN", "FOR", "LEASE", "EXPIRES IN", "BEHIND"];
    head.extend(with_notes.then_some("NOTE"));
    table.set_header(head.into_iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    for info in infos {
        let mut cells = row(info);
        cells.extend(with_notes.then(|| Cell::new(plain(info.note.as_deref().unwrap_or("-")))));
        table.add_row(cells);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if [3, 7].contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // In a column that is on the right, the padding of the last cell is all there is behind it.
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// A name, an owner or a note may have control characters, which a terminal would obey.
pub(crate) fn plain(text: &str) -> String {
    text.escape_debug().to_string()
}

fn row(info: &LockInfo) -> Vec<Cell> {
    let absent = || "-".to_owned();
    let state = match info.state {
        LockState::Held => Cell::new(info.state).fg(Color::Green),
        _ => Cell::new(info.state).fg(Color::Yellow),
    };
    let since = info.created_at.and_then(|at| at.elapsed().ok());
    vec![
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

    fn infos() -> Vec<LockInfo> {
        let ago = |millis: u64| {
            let at = std::time::SystemTime::now() - Duration::from_millis(millis);
            at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
        };
        let ours = |state: &str, owner: &str, asked: u128, token: u64, waiters: u32| {
            format!(
                r#"{{"key":"deploy/billing","state":"{state}","owner":"{owner}","pid":7,"thread":"1","created_at":{asked},
                "lease_id":1234605616436508552,"ttl_remaining":28000,"token":{token},"waiters":{waiters}}}"#
            )
        };
        let foreign = r#"{"key":"odd\tname","state":"held","owner":null,"pid":null,"thread":null,"created_at":null,
            "lease_id":null,"ttl_remaining":null,"token":12,"waiters":0}"#;
        let all = [
            ours("held", "ci/4711", ago(182_500), 4711, 1),
            ours("waiting", "ci/4712", ago(2_500), 47112, 0),
            foreign.to_owned(),
        ];
        all.iter().map(|info| serde_json::from_str(info).unwrap()).collect()
    }

    #[test]
    fn the_table_is_aligned() {
        assert_eq!(table(&infos(), false), include_str!("golden/table.txt"));
        assert_eq!(table(&[], false), "");
    }

    #[test]
    fn notes_have_a_column_if_there_are_any() {
        let mut infos = infos();
        infos[0].note = Some("an \x1b[1minjection".into());
        let table = table(&infos, false);
        let mut lines = table.lines();
        assert!(lines.next().unwrap().ends_with("BEHIND  NOTE"));
        assert!(lines.next().unwrap().ends_with("1  an \\u{1b}[1minjection"));
        assert!(lines.next().unwrap().ends_with("0  -"));
    }

    #[test]
    fn colours_do_not_change_the_alignment() {
        let coloured = table(&infos(), true);
        assert!(coloured.contains("\x1b[38;5;10mheld\x1b[39m"), "{coloured:?}");
        let mut plain = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\x1b') {
            plain += before;
            rest = after.split_once('m').unwrap().1;
        }
        plain += rest;
        let trimmed = |text: &str| text.lines().map(str::trim_end).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(trimmed(&plain), trimmed(include_str!("golden/table.txt")));
    }

    #[test]
    fn time_spans_have_two_units_at_most() {
        let text = |millis| age(Duration::from_millis(millis));
        assert_eq!(text(40), "40ms");
        assert_eq!(text(3_900), "3s");
        assert_eq!(text(182_500), "3m 2s");
        assert_eq!(text(3_600_000 * 50 + 61_000), "2days 2h");
    }
}
