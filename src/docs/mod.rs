//! The book: how to use the library, how to run it, what it promises, how it works, and why to believe it.
//!
//! | Chapter | Question |
//! |---|---|
//! | [`guide`] | How do I program with it? Connecting, waiting, guards, losses, tests, errors; the table from the Go API. |
//! | [`operations`] | How do I run it? etcd releases, TLS, roles, timeouts, logs, alerts, troubleshooting. |
//! | [`command_line`] | How do I run a program under a lock, and see who holds which lock? The program `etcd-lock`. |
//! | [`guarantees`] | What can I rely on? Each promise with its limits, and what holds under which fault. |
//! | [`protocol`] | How does another program join the same queues? Keys, transactions, watches. |
//! | [`evidence`] | Why should I believe it? How each promise is argued and tested, how to repeat that, and what was found. |
//!
//! The same text is in `src/docs/` as Markdown files. The modules hold nothing else.

macro_rules! chapter {
    ($name:ident, $file:literal) => {
        // In CommonMark the first definition of a link wins: these go to the pages of this documentation, the files' own
        // definitions to the other files.
        #[doc = "[command line]: crate::docs::command_line"]
        #[doc = "[evidence]: crate::docs::evidence"]
        #[doc = "[guarantees]: crate::docs::guarantees"]
        #[doc = "[guide]: crate::docs::guide"]
        #[doc = "[operations]: crate::docs::operations"]
        #[doc = "[protocol]: crate::docs::protocol"]
        #[doc = ""]
        // One program needs TLS, so without it none is tested.
        #[cfg_attr(any(not(doctest), feature = "tls"), doc = include_str!($file))]
        pub mod $name {}
    };
}

chapter!(guide, "guide.md");
chapter!(operations, "operations.md");
chapter!(command_line, "command_line.md");
chapter!(guarantees, "guarantees.md");
chapter!(protocol, "protocol.md");
chapter!(evidence, "evidence.md");
