// Shared by the examples: an etcd to connect to, and the library's log on the terminal.

use std::io::Write;

use etcd_fixture::{Etcd, StartError};

/// The cluster in `ETCD_ENDPOINTS` (separated by commas), or else a private etcd on a free port in a temporary
/// directory, which ends with the example.
pub(crate) fn etcd() -> Etcd {
    Etcd::named_or_private(&std::env::temp_dir()).unwrap_or_else(|why| {
        match why {
            StartError::NotInstalled => eprintln!(
                "This program needs an etcd, but etcd is not installed. Either\n\
                 - run ./setup.sh, which installs it, or\n\
                 - set ETCD_ENDPOINTS to the address of a running etcd, for example http://127.0.0.1:2379."
            ),
            why => eprintln!("etcd failed to start: {why}"),
        }
        std::process::exit(1)
    })
}

/// Prints the library's log lines from `info` on; `RUST_LOG=etcd_lock=debug` prints more.
pub(crate) fn show_logs() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("etcd_lock=info"))
        .format(|out, record| {
            writeln!(out, "   | {} {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
}
