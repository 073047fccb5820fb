//! Lock names, and the keys of contenders and sessions in etcd.
//!
//! ```text
//! <root>/<name>/<lease id, hex>-<seq, hex>                     one exclusive contender for the lock
//! <root>/<name>/~r.<lease id, hex>-<seq, hex>                  a shared one
//! <root>/<name>/~<take>of<limit>.<lease id, hex>-<seq, hex>    one for some permits of a semaphore
//! <root>/~session/<lease id, hex>                              one session
//! ```
//!
//! This is the layout of Go's `concurrency.Mutex` and of `etcdctl lock`, which name a contender by its lease alone and
//! are exclusive.

use std::fmt;
use std::sync::Arc;

use crate::kv::{Key, LeaseId, Span};
use crate::mode::Mode;

/// The longest lock name, in bytes before encoding: it fits etcd's limits and keeps log lines readable.
const MAX_NAME_BYTES: usize = 512;

/// Why a text is not a valid root or lock name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InvalidName {
    Root {
        why: String,
    },
    /// `name` is cut after 64 characters.
    Lock {
        name: String,
        why: String,
    },
}

/// The key below which a manager's keys are: not empty, without a trailing slash.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Root(Arc<str>);

impl Root {
    pub(crate) fn parse(root: &str) -> Result<Self, InvalidName> {
        let trimmed = root.trim_end_matches('/');
        if trimmed.is_empty() {
            return Err(InvalidName::Root {
                why: format!(
                    "the root {root:?} must not be empty: it separates this program's locks from other keys"
                ),
            });
        }
        Ok(Self(trimmed.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of a session, whose mod revision is the session's epoch.
    pub(crate) fn session_key(&self, lease: LeaseId) -> Key {
        Key::from(format!("{}/~session/{lease:x}", self.0))
    }

    /// The keys of all locks whose names begin with `prefix`; an empty prefix includes the session keys.
    pub(crate) fn locks_beginning_with(&self, prefix: &str) -> Span {
        Span::Prefix(Key::from(format!("{}/{}", self.0, encode(prefix))))
    }

    /// The lock name in a contender's key below this root; `None` for any other key, session keys included.
    pub(crate) fn name_of(&self, key: &Key) -> Option<String> {
        let key = std::str::from_utf8(key.as_bytes()).ok()?;
        let below = key.strip_prefix(&*self.0)?.strip_prefix('/')?;
        let (encoded, _contender) = below.split_once('/')?;
        if encoded.starts_with('~') {
            return None;
        }
        percent_encoding::percent_decode_str(encoded).decode_utf8().ok().map(|name| name.into_owned())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A valid lock name together with the prefix of its contenders' keys. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LockName(Arc<NameParts>);

struct NameParts {
    name: String,
    /// `<root>/<encoded name>/`
    prefix: Key,
}

impl LockName {
    pub(crate) fn parse(root: &Root, name: &str) -> Result<Self, InvalidName> {
        let invalid = |why: String| InvalidName::Lock { name: name.chars().take(64).collect(), why };
        if name.is_empty() {
            return Err(invalid("a key must not be empty".into()));
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(invalid(format!(
                "the key has {} bytes in UTF-8; the limit is {MAX_NAME_BYTES}",
                name.len()
            )));
        }
        let prefix = Key::from(format!("{}/{}/", root.as_str(), encode(name)));
        Ok(Self(Arc::new(NameParts { name: name.into(), prefix })))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0.name
    }

    /// The name, as the only one of a list.
    pub(crate) fn as_list(&self) -> &[String] {
        std::slice::from_ref(&self.0.name)
    }

    /// The keys of all contenders for this name, and no other keys.
    pub(crate) fn contenders(&self) -> Span {
        Span::Prefix(self.0.prefix.clone())
    }

    /// The keys of all contenders for this name but the shared ones: those before them, and those after them.
    pub(crate) fn contenders_but_shared(&self) -> [Span; 2] {
        let shared = Key::from(format!("{}{}", self.0.prefix, Mode::Shared.marker()));
        let end = |key: &Key| Key::from(key.prefix_end());
        [
            Span::Between(self.0.prefix.clone(), shared.clone()),
            Span::Between(end(&shared), end(&self.0.prefix)),
        ]
    }

    /// Whether the key is a [`contender_key`](Self::contender_key) of this name and lease.
    pub(crate) fn is_key_of(&self, key: &Key, lease: LeaseId) -> bool {
        let of_lease = format!("{}{}{lease:x}-", self.0.prefix, Mode::of(key).marker());
        key.as_bytes().starts_with(of_lease.as_bytes())
    }

    /// Whether two contenders of this name belong to the same session, both as this library names them.
    pub(crate) fn is_of_same_session(&self, one: &Key, other: &Key) -> bool {
        let session = |key: &Key| {
            let contender = key.as_str().strip_prefix(self.0.prefix.as_str())?.to_owned();
            let contender = contender.strip_prefix(&Mode::of(key).marker())?;
            contender.rsplit_once('-').map(|(lease, _)| lease.to_owned())
        };
        session(one).is_some_and(|lease| Some(lease) == session(other))
    }

    /// The key of a contender. `seq` distinguishes the contenders of one session.
    pub(crate) fn contender_key(&self, mode: Mode, lease: LeaseId, seq: u64) -> Key {
        Key::from(format!("{}{}{lease:x}-{seq:x}", self.0.prefix, mode.marker()))
    }
}

impl PartialEq for LockName {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for LockName {}

impl std::hash::Hash for LockName {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl std::borrow::Borrow<str> for LockName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Encodes a name as one path segment: `/`, `%`, control characters and a leading `~` (reserved for keys that are not
/// locks) are percent-encoded. Everything else is unchanged, so that a Go program that locks `<root>/<name>` contends
/// under the same prefix.
fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len() + 8);
    for (at, c) in name.char_indices() {
        match u8::try_from(c) {
            Ok(byte)
                if byte.is_ascii_control() || matches!(byte, b'/' | b'%') || (at == 0 && byte == b'~') =>
            {
                encoded.push_str(percent_encoding::percent_encode_byte(byte));
            }
            _ => encoded.push(c),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        Root::parse("/app/locks/").unwrap()
    }

    #[test]
    fn a_root_loses_its_trailing_slash_and_is_never_empty() {
        assert_eq!(root().as_str(), "/app/locks");
        assert!(matches!(Root::parse("//"), Err(InvalidName::Root { .. })));
        assert!(matches!(Root::parse(""), Err(InvalidName::Root { .. })));
    }

    #[test]
    fn a_leading_slash_makes_another_root_and_a_trailing_one_does_not() {
        let [slash, bare, trailing] = ["/app", "app", "app/"].map(|root| {
            LockName::parse(&Root::parse(root).unwrap(), "jobs").unwrap().contender_key(Mode::Exclusive, 7, 1)
        });
        assert_ne!(slash, bare);
        assert_eq!(bare, trailing);
    }

    #[test]
    fn every_name_survives_a_round_trip_through_its_key() {
        for name in ["a", "a/b", "a/", "%2F", "~session", "naïve/锁\u{1}", "~", " ", "a~b"] {
            let parsed = LockName::parse(&root(), name).unwrap();
            assert_eq!(root().name_of(&parsed.contender_key(Mode::Shared, 0x1f, 3)).as_deref(), Some(name));
        }
    }

    #[test]
    fn no_lock_s_key_range_contains_another_s() {
        let names = ["a", "a/b", "a/", "%2F", "/", "~session", "a%2Fb", "a/b/"];
        let prefixes: Vec<String> =
            names.iter().map(|n| LockName::parse(&root(), n).unwrap().0.prefix.to_string()).collect();
        for (i, a) in prefixes.iter().enumerate() {
            for (j, b) in prefixes.iter().enumerate() {
                assert!(i == j || !a.starts_with(b.as_str()), "{a} lies within {b}");
            }
        }
    }

    #[test]
    fn keys_are_those_of_go_s_mutex_plus_a_sequence_number() {
        let name = LockName::parse(&root(), "jobs").unwrap();
        assert_eq!(
            name.contender_key(Mode::Exclusive, 0x694d_71ad, 0x1a).to_string(),
            "/app/locks/jobs/694d71ad-1a"
        );
        assert_eq!(root().session_key(0x694d_71ad).to_string(), "/app/locks/~session/694d71ad");
        assert_eq!(root().name_of(&root().session_key(7)), None);
    }

    #[test]
    fn the_spans_around_the_shared_contenders_hold_every_other_one() {
        let name = LockName::parse(&root(), "jobs").unwrap();
        let within = |key: &Key| {
            name.contenders_but_shared().iter().any(|span| match span {
                Span::Between(from, end) => from <= key && key < end,
                _ => false,
            })
        };
        let permits = Mode::Permits { take: 2, limit: 8 };
        for (mode, other) in [(Mode::Exclusive, true), (permits, true), (Mode::Shared, false)] {
            let key = name.contender_key(mode, 0x1f, 3);
            assert_eq!((within(&key), name.is_key_of(&key, 0x1f)), (other, true), "{key}");
        }
        for foreign in ["694d71ad", "~r", "~r/", "~s", "\u{7f}", "z"] {
            assert!(within(&Key::from(format!("{}{foreign}", name.0.prefix))), "{foreign}");
        }
    }

    #[test]
    fn a_name_is_not_empty_and_at_most_512_bytes() {
        assert!(matches!(LockName::parse(&root(), ""), Err(InvalidName::Lock { .. })));
        assert!(LockName::parse(&root(), &"x".repeat(512)).is_ok());
        assert!(matches!(LockName::parse(&root(), &"é".repeat(257)), Err(InvalidName::Lock { .. })));
    }
}
