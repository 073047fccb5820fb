//! Watches.

use super::*;

fn spec(span: Span, from_revision: Revision) -> WatchSpec {
    WatchSpec { span, from_revision, puts: false }
}

fn everything(from_revision: Revision) -> WatchSpec {
    spec(Span::Prefix("".into()), from_revision)
}

fn deleted(key: &str, revision: Revision) -> Notice {
    all_deleted(&[key], revision)
}

fn all_deleted(keys: &[&str], revision: Revision) -> Notice {
    Notice::Deleted { keys: keys.iter().map(|&key| key.into()).collect(), revision }
}

#[test]
fn a_watch_from_now_reports_later_deletions_in_its_span() {
    let mut model = Model::new();
    model.do_ops(vec![put("a", ""), put("b", ""), put("b/1", ""), put("c", "")]);
    model.do_delete("a");
    let (key, revision) = model.watch(&spec(Span::Key("b".into()), 0)).unwrap();
    let (range, _) = model.watch(&spec(Span::Prefix("b".into()), 0)).unwrap();
    let (between, _) = model.watch(&spec(Span::Between("b/".into(), "d".into()), 0)).unwrap();
    assert_eq!((revision, model.poll_notice()), (3, None));

    model.do_ops(vec![delete("c"), delete("b/1"), delete("b")]);
    model.do_put("b", "");
    model.do_delete("b");
    let mut notices = model.notices();
    notices.sort_by_key(|(watcher, _)| *watcher);
    assert_eq!(
        notices,
        [
            (key, deleted("b", 4)),
            (key, deleted("b", 6)),
            (range, all_deleted(&["b/1", "b"], 4)),
            (range, deleted("b", 6)),
            (between, all_deleted(&["c", "b/1"], 4)),
        ]
    );
}

#[test]
fn a_watch_from_the_past_reports_it_before_the_present() {
    let mut model = Model::new();
    model.do_ops(vec![put("a", ""), put("b", ""), put("c", "")]); // 2
    model.do_delete("a"); // 3
    model.do_delete("b"); // 4
    let (watcher, revision) = model.watch(&everything(4)).unwrap();
    model.do_delete("c"); // 5
    assert_eq!(revision, 4);
    assert_eq!(model.notices(), [(watcher, deleted("b", 4)), (watcher, deleted("c", 5))]);
}

#[test]
fn a_watch_from_a_future_revision_reports_nothing_earlier() {
    let mut model = Model::new();
    model.do_ops(vec![put("a", ""), put("b", "")]); // 2
    let (watcher, _) = model.watch(&everything(4)).unwrap();
    model.do_delete("a"); // 3
    model.do_delete("b"); // 4
    assert_eq!(model.notices(), [(watcher, deleted("b", 4))]);
}

#[test]
fn a_watch_from_a_compacted_revision_reports_only_the_compaction() {
    let mut model = Model::new();
    model.do_put("a", ""); // 2
    model.do_delete("a"); // 3
    model.do_put("a", ""); // 4
    model.compact(3).unwrap();
    let (late, _) = model.watch(&everything(2)).unwrap();
    let (just, _) = model.watch(&everything(3)).unwrap();
    model.do_delete("a"); // 5
    assert_eq!(
        model.notices(),
        [(late, Notice::Compacted { revision: 3 }), (just, deleted("a", 3)), (just, deleted("a", 5))]
    );
}

#[test]
fn a_closed_watch_reports_nothing() {
    let mut model = Model::new();
    model.do_ops(vec![put("a", ""), put("b", "")]);
    let (closed, _) = model.watch(&spec(Span::Key("a".into()), 0)).unwrap();
    let (range, _) = model.watch(&everything(0)).unwrap();
    let (open, _) = model.watch(&spec(Span::Key("a".into()), 0)).unwrap();
    model.do_delete("a");
    model.unwatch(closed);
    model.unwatch(range);
    model.unwatch(range);
    model.do_put("a", "");
    model.do_delete("a");
    assert_eq!(model.notices(), [(open, deleted("a", 3)), (open, deleted("a", 5))]);
}

#[test]
fn a_watch_of_an_empty_range_is_refused() {
    let mut model = Model::new();
    let empty = spec(Span::Between("b".into(), "a".into()), 0);
    assert_eq!(model.watch(&empty).unwrap_err().class, FailureClass::Refused);
}
