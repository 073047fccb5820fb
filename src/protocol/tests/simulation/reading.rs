//! What the store has, for the checks and the faults.

use super::world::root;
use crate::kv::{Key, KeyValue, Order, Range, Span};
use crate::store::memory::model::Model;

/// The keys of a span without their values, by create revision and then by key.
pub(super) fn keys_within(model: &Model, span: Span) -> Vec<KeyValue> {
    let mut keys = all_of(model, span);
    keys.sort_by(|one, other| (one.create_revision, &one.key).cmp(&(other.create_revision, &other.key)));
    keys
}

/// Every key of the library.
pub(super) fn everything() -> Span {
    Span::Prefix(Key::from(format!("{}/", root().as_str())))
}

/// The session keys.
pub(super) fn sessions() -> Span {
    Span::Prefix(Key::from(format!("{}/~session/", root().as_str())))
}

fn all_of(model: &Model, span: Span) -> Vec<KeyValue> {
    let range = Range {
        span,
        order: Order::OldestFirst,
        limit: 0,
        max_create_revision: 0,
        at_revision: 0,
        keys_only: true,
    };
    model.read(&range).map(|found| found.kvs).unwrap_or_default()
}
