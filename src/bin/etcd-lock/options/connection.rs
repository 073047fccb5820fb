//! How to reach etcd, and where the locks are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

/// What stands for standard input.
const STDIN: &str = "-";

/// Options of every command. What is not given comes from the environment.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection (for every command)")]
pub(crate) struct Connection {
    /// The members of etcd [default: $ETCDCTL_ENDPOINTS, or http://127.0.0.1:2379]
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "ETCD_LOCK_ENDPOINTS",
        value_delimiter = ',',
        value_name = "URL,..."
    )]
    pub(crate) endpoints: Vec<String>,
    /// The key below which the locks are
    #[arg(
        long,
        global = true,
        hide_env_values = true,
        env = "ETCD_LOCK_ROOT",
        default_value = "/locks",
        value_name = "KEY"
    )]
    pub(crate) root: String,
    /// The certificate authority of etcd's servers, in PEM [default: $ETCDCTL_CACERT]
    #[arg(long, global = true, hide_env_values = true, env = "ETCD_LOCK_CACERT", value_name = "FILE")]
    pub(crate) cacert: Option<PathBuf>,
    /// This client's certificate, in PEM [default: $ETCDCTL_CERT]
    #[arg(long, global = true, hide_env_values = true, env = "ETCD_LOCK_CERT", value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The key of that certificate, in PEM [default: $ETCDCTL_KEY]
    // Not ETCD_LOCK_KEY: a command under a lock finds the lock's key there.
    #[arg(long, global = true, hide_env_values = true, env = "ETCD_LOCK_KEY_FILE", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// The user of etcd [default: $ETCDCTL_USER]
    #[arg(long, global = true, hide_env_values = true, env = "ETCD_LOCK_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// A file with the user's password, - for standard input [default: $ETCDCTL_PASSWORD itself]
    #[arg(long, global = true, hide_env_values = true, env = "ETCD_LOCK_PASSWORD_FILE", value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// How long to wait for etcd, to connect and for each request
    #[arg(long, global = true, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    pub(crate) timeout: Duration,
}

impl Connection {
    /// Whether the password comes from standard input, and uses that up.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.password_file.as_deref() == Some(Path::new(STDIN))
    }
}
