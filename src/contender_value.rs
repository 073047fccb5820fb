//! The value of a contender's key: information for people, which the protocol never reads.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The value of a contender's key, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContenderValue {
    /// The manager's owner name.
    pub(crate) owner: String,
    /// The thread that asked for the lock.
    #[serde(default)]
    pub(crate) thread: String,
    #[serde(default)]
    pub(crate) pid: u32,
    /// When the contender asked for the lock, in milliseconds since the Unix epoch; 0: unknown.
    #[serde(default)]
    created_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<String>,
}

impl ContenderValue {
    /// A new value; `asked_at` is the time since the Unix epoch.
    pub(crate) fn new(owner: &str, thread: &str, pid: u32, asked_at: Duration) -> Self {
        let created_at = u64::try_from(asked_at.as_millis()).unwrap_or(u64::MAX);
        Self { owner: owner.into(), thread: thread.into(), pid, created_at, note: None }
    }

    /// The value with this note.
    pub(crate) fn with_note(self, note: Option<&str>) -> Self {
        Self { note: note.map(str::to_owned), ..self }
    }

    /// The value as JSON.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Strings and numbers always serialise, and an empty value would not invalidate the lock.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// `None` for the value of a foreign client: Go's mutex writes an empty one, others write their own.
    pub(crate) fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }

    /// When the contender asked for the lock, by its own clock.
    pub(crate) fn created_at(&self) -> Option<SystemTime> {
        if self.created_at == 0 {
            return None;
        }
        UNIX_EPOCH.checked_add(Duration::from_millis(self.created_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_survives_a_round_trip_through_json() {
        let value = ContenderValue::new("host/1", "main", 7, Duration::from_millis(1_700_000_000_123));
        let json = value.encode();
        assert_eq!(
            std::str::from_utf8(&json).unwrap(),
            r#"{"owner":"host/1","thread":"main","pid":7,"created_at":1700000000123}"#
        );
        let back = ContenderValue::decode(&json).unwrap();
        assert_eq!(back, value);
        assert_eq!(back.created_at(), Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)));
    }

    #[test]
    fn foreign_values_decode_to_none() {
        for foreign in [&b""[..], b"\xff\x00", b"holder-1", b"{}", b"[1]", br#"{"owner":7}"#, b"null"] {
            assert_eq!(ContenderValue::decode(foreign), None, "{:?}", String::from_utf8_lossy(foreign));
        }
    }

    #[test]
    fn values_with_more_or_fewer_fields_decode() {
        let value = ContenderValue::decode(br#"{"owner":"o","rack":3}"#).unwrap();
        assert_eq!((value.owner.as_str(), value.pid), ("o", 0));
        assert_eq!(value.created_at(), None);
        let far = ContenderValue::decode(br#"{"owner":"o","created_at":18446744073709551615}"#).unwrap();
        assert!(far.created_at().is_none_or(|at| at > UNIX_EPOCH));
    }
}
