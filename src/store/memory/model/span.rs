//! The keys that a [`Span`] contains.

use crate::kv::{Key, Span};

impl Span {
    /// The first key that the span can contain.
    pub(super) fn start(&self) -> &Key {
        match self {
            Self::Key(start) | Self::Prefix(start) | Self::Between(start, _) => start,
        }
    }

    /// Whether the span contains the key. The keys of a span are contiguous, from its start on.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        match self {
            Self::Key(only) => key == only,
            Self::Prefix(prefix) => key.as_bytes().starts_with(prefix.as_bytes()),
            Self::Between(first, end) => first <= key && key < end,
        }
    }

    /// Whether the span can contain no key.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Between(first, end) if first >= end)
    }

    /// Whether a key can be in both spans: two contiguous spans overlap only if one contains the other's start.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        !self.is_empty()
            && !other.is_empty()
            && (self.contains(other.start()) || other.contains(self.start()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Span {
        Span::Key(text.into())
    }

    fn prefix(text: &str) -> Span {
        Span::Prefix(text.into())
    }

    fn between(first: &str, end: &str) -> Span {
        Span::Between(first.into(), end.into())
    }

    #[test]
    fn a_span_contains_its_first_key_and_not_its_end() {
        assert!(prefix("a/").contains(&"a/".into()) && prefix("a/").contains(&"a/b".into()));
        assert!(!prefix("a/").contains(&"a".into()) && !prefix("a/").contains(&"a0".into()));
        assert!(between("a", "c").contains(&"a".into()) && between("a", "c").contains(&"bz".into()));
        assert!(!between("a", "c").contains(&"c".into()));
        assert!(prefix("").contains(&"anything".into()));
    }

    #[test]
    fn spans_overlap_if_they_can_share_a_key() {
        assert!(prefix("a/").overlaps(&prefix("a/b/")) && prefix("a/b/").overlaps(&prefix("a/")));
        assert!(prefix("a/").overlaps(&key("a/b")) && between("a", "b").overlaps(&prefix("a")));
        assert!(!prefix("a/").overlaps(&prefix("b/")) && !key("a").overlaps(&key("b")));
        assert!(!between("a", "b").overlaps(&between("b", "c")));
        assert!(between("c", "a").is_empty() && !between("c", "a").overlaps(&prefix("")));
    }
}
