//! The library's imports: downwards from layer to layer, and without circles.

mod imports;

use std::collections::BTreeMap;
use std::path::Path;

use imports::{Arrow, Sources};

/// The layers from the top down, by the modules of the crate's root. A module may import from lower layers only, not
/// from its own: whatever two modules of a layer share is in a lower one.
const LAYERS: &[&[&str]] = &[
    &["lib", "docs"],
    &["memory"],
    &["manager", "viewer"],
    &["lock"],
    &["client"],
    &["driver"],
    &["shared", "store"],
    &["protocol"],
    &["options", "stats"],
    &["error"],
    &["info", "name"],
    &["mode"],
    &["clock", "contender_value", "kv", "log_target", "tls"],
    &["mutex"],
];

fn sources() -> Sources {
    Sources::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// The forbidden arrows among these.
fn upward(arrows: &[Arrow]) -> Vec<String> {
    let layer = |module: &str| {
        let root = module.split("::").next().unwrap_or_default();
        LAYERS.iter().position(|layer| layer.contains(&root)).ok_or(format!("{root} has no layer"))
    };
    let wrong = |Arrow { from, to }: &Arrow| match (layer(from), layer(to)) {
        (Err(none), _) | (_, Err(none)) => Some(none),
        (Ok(above), Ok(below)) if above < below || from.split("::").next() == to.split("::").next() => None,
        _ => Some(format!("{from} imports from {to}")),
    };
    arrows.iter().filter_map(wrong).collect()
}

/// For each module that closes a circle, the path along the arrows back to it.
fn circles(arrows: &[Arrow]) -> Vec<String> {
    let mut imports: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Arrow { from, to } in arrows {
        imports.entry(from).or_default().push(to);
    }
    let (mut found, mut done) = (Vec::new(), Vec::new());
    for &module in imports.keys() {
        walk(module, &imports, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

fn walk<'a>(
    module: &'a str,
    imports: &BTreeMap<&'a str, Vec<&'a str>>,
    way: &mut Vec<&'a str>,
    done: &mut Vec<&'a str>,
    found: &mut Vec<String>,
) {
    if let Some(begin) = way.iter().position(|&earlier| earlier == module) {
        found.push(way[begin..].join(" -> ") + " -> " + module);
    } else if !done.contains(&module) {
        way.push(module);
        for next in imports.get(module).into_iter().flatten() {
            walk(next, imports, way, done, found);
        }
        way.pop();
        done.push(module);
    }
}

#[test]
fn imports_go_down_the_layers_only() {
    let arrows = sources().arrows();
    assert!(arrows.len() > 100, "the reader finds too few imports: {arrows:?}");
    let wrong = upward(&arrows);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let circles = circles(&sources().arrows());
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn no_modules_of_the_program_import_each_other_in_a_circle() {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin/etcd-lock");
    let arrows = Sources::read(&program).arrows();
    assert!(arrows.len() > 30, "the reader finds too few imports: {arrows:?}");
    let circles = circles(&arrows);
    assert!(circles.is_empty(), "{circles:#?}");
}

/// The sources of a crate in which `lock` and `client` are as given.
fn crate_with(lock: &str, client: &str) -> Sources {
    let kv = "pub(crate) struct Key;";
    let lib = "mod client; mod kv; mod lock; pub use lock::Lock;";
    let guard = "use super::Lock;";
    Sources::of(&[("lib", lib), ("lock", lock), ("lock::guard", guard), ("client", client), ("kv", kv)])
}

#[test]
fn an_upward_import_is_seen_however_it_is_written() {
    for import in [
        "use crate::lock::Lock;",
        "use {crate::{kv::Key, lock::{self}}};",
        "fn of(lock: &crate::lock::Lock) {}",
        "use crate::Lock;",
        "use super::lock::Lock as L;",
        "mod inner { use super::super::lock::Lock; }",
    ] {
        let arrows = crate_with("mod guard; struct Lock(crate::client::Client);", import).arrows();
        assert!(!upward(&arrows).is_empty(), "{import}: {arrows:?}");
    }
}

#[test]
fn a_circle_is_seen_within_a_layer_and_between_two() {
    let within = crate_with("mod guard; use guard::Guard; struct Lock;", "");
    assert_eq!(circles(&within.arrows()), ["lock -> lock::guard -> lock"]);
    assert!(upward(&within.arrows()).is_empty());
    let between = crate_with("mod guard; use crate::client::Client;", "use crate::lock::guard::Guard;");
    assert_eq!(circles(&between.arrows()), ["client -> lock::guard -> lock -> client"]);
}

#[test]
fn tests_comments_and_strings_are_ignored() {
    let client = r#"
        //! Not crate::lock::Lock.
        const TEXT: &str = "use crate::lock::Lock; {";
        const BRACE: char = '{';
        /* use crate::lock::Lock; */
        #[cfg(test)]
        use crate::lock::Lock;
        use crate::kv::Key;
        #[cfg(test)]
        mod tests { use crate::lock::Lock; fn of<'a>(key: &'a str) {} }
        pub(in crate::lock) fn seen() {}
    "#;
    let arrows = crate_with("mod guard; struct Lock;", client).arrows();
    assert!(upward(&arrows).is_empty(), "{arrows:?}");
    assert!(arrows.iter().any(|arrow| arrow.from == "client" && arrow.to == "kv"), "{arrows:?}");
}
