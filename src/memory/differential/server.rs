//! A real etcd for these tests.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::io::Etcd;
use crate::options::LockManagerOptions;

/// A private etcd on ports of its own, with its data in a temporary folder; killed when dropped.
pub(super) struct Server {
    process: Child,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Server {
    /// Starts an etcd and connects to it once it answers.
    pub(super) async fn start() -> (Self, Etcd) {
        // A port can be taken by somebody else between the look and the use.
        for _ in 0..5 {
            let mut server = Self::spawn();
            if let Some(etcd) = server.connect().await {
                return (server, etcd);
            }
        }
        panic!("no etcd came up");
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn spawn() -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let [client, peer] = free_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(data.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd, to be found on the PATH");
        Self { process, endpoint: client, _data: data }
    }

    async fn connect(&mut self) -> Option<Etcd> {
        let options = LockManagerOptions {
            ttl: Duration::from_secs(5),
            owner: None,
            credentials: None,
            #[cfg(feature = "tls")]
            tls: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(10),
            safety_margin: None,
            close_timeout: Duration::from_secs(2),
        };
        loop {
            let error = match Etcd::connect(&[self.endpoint.clone()], &options).await {
                Ok(etcd) => return Some(etcd),
                Err(error) => error,
            };
            if self.process.try_wait().expect("a child").is_some() {
                return None;
            }
            assert!(error.is_retryable(), "{error:?}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to be done if it is gone already.
        let _killed = self.process.kill();
        let _waited = self.process.wait();
    }
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
