//! A reader of `use` lines and paths that ignores tests, comments and strings.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One module refers to another one. The crate's root is called `lib`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrow {
    pub(super) from: String,
    pub(super) to: String,
}

/// The modules of a crate that are not tests, each with its tokens.
pub(super) struct Sources {
    modules: BTreeMap<String, Vec<String>>,
}

impl Sources {
    pub(super) fn read(src: &Path) -> Self {
        let mut found = Vec::new();
        collect(src, "", &mut found);
        let files: Vec<_> = found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Self::of(&files)
    }

    /// Takes modules by their paths below the crate; `lib` is the root.
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let (mut modules, mut tests) = (BTreeMap::new(), Vec::new());
        for (name, text) in files {
            let (kept, for_tests) = without_tests(tokens(text));
            tests.extend(for_tests.into_iter().map(|module| child(name, &module)));
            modules.insert((*name).to_owned(), kept);
        }
        let is_test =
            |name: &str| tests.iter().any(|test| name == test || name.starts_with(&format!("{test}::")));
        modules.retain(|name, _| !is_test(name));
        Self { modules }
    }

    /// Every pair of modules of which the first refers to the second, or to an item of it.
    pub(super) fn arrows(&self) -> Vec<Arrow> {
        let mut arrows = BTreeSet::new();
        for (module, tokens) in &self.modules {
            for path in paths(module, tokens) {
                let to = self.module_of(&path);
                if to != *module {
                    arrows.insert(Arrow { from: module.clone(), to });
                }
            }
        }
        arrows.into_iter().collect()
    }

    /// The module that this path ends in, or whose item it ends in.
    fn module_of(&self, path: &[String]) -> String {
        let prefixes = (1..=path.len()).rev().map(|length| path[..length].join("::"));
        prefixes.into_iter().find(|name| self.modules.contains_key(name)).unwrap_or("lib".into())
    }
}

fn collect(folder: &Path, module: &str, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the folder of the sources can be read") {
        let path = entry.expect("the folder's entry can be read").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        if path.is_dir() && stem == "bin" {
            // Programs are crates of their own.
        } else if path.is_dir() {
            collect(&path, &child(module, &stem), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = if stem == "mod" { module.to_owned() } else { child(module, &stem) };
            found.push((name, fs::read_to_string(&path).expect("the source file can be read")));
        }
    }
}

fn child(module: &str, name: &str) -> String {
    if module.is_empty() || module == "lib" { name.to_owned() } else { format!("{module}::{name}") }
}

/// Identifiers, `::` and single characters, without comments, and with strings and characters as `""`.
fn tokens(text: &str) -> Vec<String> {
    let (chars, mut at, mut tokens) = (text.chars().collect::<Vec<_>>(), 0, Vec::new());
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    while let Some(&c) = chars.get(at) {
        let begin = at;
        at += 1;
        if starts(begin, "//") {
            at = (at..chars.len()).find(|&i| chars[i] == '\n').unwrap_or(chars.len());
        } else if starts(begin, "/*") {
            at = (at..chars.len()).find(|&i| starts(i, "*/")).map_or(chars.len(), |end| end + 2);
        } else if c == 'r' && (starts(at, "\"") || starts(at, "#\"")) {
            let end = if starts(at, "#") { "\"#" } else { "\"" };
            at = (at + end.len()..chars.len())
                .find(|&i| starts(i, end))
                .map_or(chars.len(), |i| i + end.len());
            tokens.push("\"\"".into());
        } else if c == '"' || (c == '\'' && (chars.get(at) == Some(&'\\') || starts(at + 1, "'"))) {
            while at < chars.len() && chars[at] != c {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            tokens.push("\"\"".into());
        } else if c.is_alphanumeric() || c == '_' {
            at = (at..chars.len())
                .find(|&i| !(chars[i].is_alphanumeric() || chars[i] == '_'))
                .unwrap_or(chars.len());
            tokens.push(chars[begin..at].iter().collect());
        } else if starts(begin, "::") {
            at += 1;
            tokens.push("::".into());
        } else if !c.is_whitespace() {
            tokens.push(c.into());
        }
    }
    tokens
}

/// Removes the items under `#[cfg(test)]`, and the modules of test files.
fn without_tests(tokens: Vec<String>) -> (Vec<String>, Vec<String>) {
    const CFG_TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].iter().zip(CFG_TEST).all(|(token, expected)| token == expected) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let begin = at + CFG_TEST.len();
        at = end_of_item(&tokens, begin);
        if let Some(named) = tokens[begin..at].iter().position(|token| token == "mod")
            && tokens[at - 1] == ";"
        {
            modules.push(tokens[begin + named + 1].clone());
        }
    }
    (kept, modules)
}

/// The position behind the `;` or the closing brace of the item that starts here.
fn end_of_item(tokens: &[String], begin: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate().skip(begin) {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token == "}" {
                    return at + 1;
                }
            }
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Every path in this module that starts in this crate, from the crate's root.
fn paths(module: &str, tokens: &[String]) -> Vec<Vec<String>> {
    let own: Vec<String> =
        if module == "lib" { Vec::new() } else { module.split("::").map(Into::into).collect() };
    let declared: Vec<&String> = tokens
        .windows(3)
        .filter(|three| three[0] == "mod" && three[2] == ";")
        .map(|three| &three[1])
        .collect();
    let begins_here =
        |name: &String| matches!(name.as_str(), "crate" | "super" | "self") || declared.contains(&name);
    // As in `pub(in crate::part)`, which imports nothing.
    let is_visibility = |at: usize| at >= 2 && tokens[at - 2] == "(" && tokens[at - 1] == "in";
    let (mut found, mut at) = (Vec::new(), 0);
    // The open modules within this file, each with the number of open braces around it.
    let (mut inner, mut depth): (Vec<(&String, usize)>, usize) = (Vec::new(), 0);
    while let Some(token) = tokens.get(at) {
        let is_path = token == "use"
            || (begins_here(token)
                && tokens.get(at + 1).is_some_and(|next| next == "::")
                && (at == 0 || tokens[at - 1] != "::")
                && !is_visibility(at));
        if is_path {
            let mut all = Vec::new();
            at = read_path(tokens, at + usize::from(token == "use"), Vec::new(), &mut all);
            let here: Vec<String> = own.iter().chain(inner.iter().map(|&(name, _)| name)).cloned().collect();
            found.extend(
                all.into_iter().filter(|path| begins_here(&path[0])).map(|path| from_root(&here, path)),
            );
            continue;
        }
        match token.as_str() {
            "mod" if tokens.get(at + 2).is_some_and(|next| next == "{") => {
                inner.push((&tokens[at + 1], depth))
            }
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inner.retain(|&(_, around)| around < depth);
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Adds the targets of a path, or of a tree of paths, to `all`; returns where it ends.
fn read_path(tokens: &[String], mut at: usize, mut path: Vec<String>, all: &mut Vec<Vec<String>>) -> usize {
    let is = |at: usize, what: &str| tokens.get(at).is_some_and(|token| token == what);
    loop {
        if is(at, "{") {
            at += 1;
            while at < tokens.len() && !is(at, "}") {
                at = read_path(tokens, at, path.clone(), all);
                at += usize::from(is(at, ","));
            }
            return at + 1;
        }
        path.push(tokens.get(at).cloned().unwrap_or_default());
        at += 1;
        if !is(at, "::") {
            break;
        }
        at += 1;
    }
    all.push(path);
    if is(at, "as") { at + 2 } else { at }
}

/// A path as it is written in the module `here`.
fn from_root(here: &[String], path: Vec<String>) -> Vec<String> {
    let mut whole = if path[0] == "crate" { Vec::new() } else { here.to_vec() };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(whole.pop()),
            _ => whole.push(name),
        }
    }
    whole
}
