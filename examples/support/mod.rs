// What every example begins with: an etcd to talk to, and the library's log on the terminal.

use std::io::Write;

use etcd_fixture::{Etcd, StartError};

/// The cluster that `ETCD_ENDPOINTS` names (separated by commas), or else a private etcd on a free port in a temporary
/// folder, which ends with the example.
pub(crate) fn etcd() -> Etcd {
    Etcd::named_or_private(&std::env::temp_dir()).unwrap_or_else(|why| {
        match why {
            StartError::NotInstalled => eprintln!(
                "This program needs an etcd, and found none. Either\n\
                 - run ./setup.sh, which installs what is missing, or\n\
                 - set ETCD_ENDPOINTS to the address of an etcd of yours, for example http://127.0.0.1:2379."
            ),
            why => eprintln!("etcd does not start: {why}"),
        }
        std::process::exit(1)
    })
}

/// Shows what the library logs, from `info` on; `RUST_LOG=etcd_lock=debug` shows more.
pub(crate) fn show_logs() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("etcd_lock=info"))
        .format(|out, record| {
            writeln!(out, "   | {} {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
}
