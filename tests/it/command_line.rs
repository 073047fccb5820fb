//! The program `etcd-lock`.

mod admin;
mod exits;
mod holding;
mod leading;
mod running;
mod surviving;
mod terminal;

use crate::support::program::Program;
use crate::support::{fresh_root, shared};

/// The program with a root of its own on the shared server.
fn program(test: &str) -> (Program, String) {
    let root = fresh_root(test);
    (Program::new(shared().access(), &root), root)
}
