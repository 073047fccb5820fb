//! One line of the report.

use serde_json::json;

use crate::output::Line;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Ok,
    /// It works, but something should be changed.
    Warn,
    /// Locks do not work.
    Fail,
}

/// One line of the report.
#[derive(Debug)]
pub(super) struct Finding {
    level: Level,
    subject: String,
    text: String,
}

impl Finding {
    pub(super) fn new(level: Level, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { level, subject: subject.into(), text: text.into() }
    }

    pub(super) fn line(&self) -> Line {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        Line {
            text: format!("{level:<5} {}: {}", self.subject, self.text),
            json: json!({ "level": level.to_lowercase(), "subject": self.subject, "text": self.text }),
        }
    }
}
