//! The settings of etcd servers, and the access that a client needs.

use etcd_fixture::{Member, with_fresh_ports};

use super::{Cluster, Etcd};

/// The settings of a server. The defaults are etcd's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    args: Vec<String>,
    users: Vec<User>,
    security: Security,
    pub(super) peer_doors: bool,
}

/// A user of an etcd with authentication, who may read and write the keys with `prefix`.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
    pub(crate) prefix: String,
}

/// The password of `root` in every etcd with authentication.
pub(crate) const ROOT_PASSWORD: &str = "root-secret";

#[derive(Clone, Debug, Default)]
enum Security {
    #[default]
    Plain,
    #[cfg(feature = "tls")]
    Tls(super::pki::Pki),
    #[cfg(feature = "tls")]
    MutualTls(super::pki::Pki),
}

impl Setup {
    /// Adds any flag of etcd, as `--name=value`.
    pub(crate) fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub(crate) fn max_txn_ops(self, operations: u32) -> Self {
        self.arg(format!("--max-txn-ops={operations}"))
    }

    pub(crate) fn quota_backend_bytes(self, bytes: u64) -> Self {
        self.arg(format!("--quota-backend-bytes={bytes}"))
    }

    /// Compacts revisions older than this by itself; etcd checks every five minutes.
    pub(crate) fn auto_compaction(self, revisions: u32) -> Self {
        self.arg("--auto-compaction-mode=revision").arg(format!("--auto-compaction-retention={revisions}"))
    }

    /// Enables authentication, with this user beside `root` ([`ROOT_PASSWORD`]). May be called for several users.
    pub(crate) fn user(mut self, name: &str, password: &str, prefix: &str) -> Self {
        self.users.push(User { name: name.into(), password: password.into(), prefix: prefix.into() });
        self
    }

    /// The members reach each other through proxies, so that [`Cluster::isolate`] works.
    pub(crate) fn peer_doors(mut self) -> Self {
        self.peer_doors = true;
        self
    }

    /// The server has a certificate.
    #[cfg(feature = "tls")]
    pub(crate) fn tls(mut self, pki: &super::pki::Pki) -> Self {
        self.security = Security::Tls(pki.clone());
        self
    }

    /// The server has a certificate and requires one of its clients.
    #[cfg(feature = "tls")]
    pub(crate) fn mutual_tls(mut self, pki: &super::pki::Pki) -> Self {
        self.security = Security::MutualTls(pki.clone());
        self
    }

    pub(crate) fn start(self) -> Etcd {
        Etcd::from(self.start_cluster(1))
    }

    /// All members are ready on return. If one does not start, the whole cluster is started again with new ports.
    pub(crate) fn start_cluster(self, size: usize) -> Cluster {
        // Measure the machine's stalls from the start.
        super::stalls::watch();
        let cluster = with_fresh_ports(|| Cluster::try_start(&self, size));
        cluster.unwrap_or_else(|why| panic!("no cluster of {size}; {why}")).with_users(&self.users)
    }

    /// Sets the flags of a member that is not started yet, and writes the certificates that they name to its folder.
    pub(super) fn apply_to(&self, member: &mut Member) {
        #[cfg(feature = "tls")]
        match &self.security {
            Security::Plain => {}
            Security::Tls(pki) => {
                member.use_tls();
                member.add_args(pki.server_args(member.dir()));
            }
            Security::MutualTls(pki) => {
                member.use_tls();
                member.add_args(pki.mutual_server_args(member.dir()));
            }
        }
        member.add_args(&self.args);
    }

    /// The access of a client with all rights to these endpoints.
    pub(super) fn access(&self, endpoints: Vec<String>) -> Access {
        let root = || ("root".to_owned(), ROOT_PASSWORD.to_owned());
        Access {
            endpoints,
            user: (!self.users.is_empty()).then(root),
            #[cfg(feature = "tls")]
            tls: match &self.security {
                Security::Plain => None,
                Security::Tls(pki) => Some(pki.client(false)),
                Security::MutualTls(pki) => Some(pki.client(true)),
            },
        }
    }
}

/// All settings of a client. Tests use them as the library's options, or change them to cause a refusal.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) endpoints: Vec<String>,
    /// Name and password.
    pub(crate) user: Option<(String, String)>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<super::pki::ClientTls>,
}

impl Access {
    /// The same servers through other addresses, for example a proxy's.
    pub(crate) fn at(&self, endpoints: impl IntoIterator<Item = String>) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), ..self.clone() }
    }

    pub(crate) fn as_user(&self, name: &str, password: &str) -> Self {
        Self { user: Some((name.into(), password.into())), ..self.clone() }
    }
}
