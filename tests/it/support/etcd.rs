//! A single server.

use std::ops::Deref;

use etcd_fixture::Member;

use super::Cluster;
use super::setup::{Access, Setup};

/// A single server; it derefs to its [`Member`].
#[derive(Debug)]
pub(crate) struct Etcd(Cluster);

impl Etcd {
    pub(crate) fn start() -> Self {
        Setup::default().start()
    }

    pub(crate) fn access(&self) -> &Access {
        self.0.access()
    }

    pub(crate) fn endpoints(&self) -> &[String] {
        &self.0.access().endpoints
    }
}

impl From<Cluster> for Etcd {
    /// The only member of this cluster.
    fn from(cluster: Cluster) -> Self {
        Self(cluster)
    }
}

impl Deref for Etcd {
    type Target = Member;

    fn deref(&self) -> &Member {
        self.0.member(0)
    }
}
