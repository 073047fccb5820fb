//! TLS to etcd.

use std::fmt;

/// TLS and mutual TLS to etcd. Its `Debug` shows no key.
#[derive(Clone, Default)]
pub struct TlsOptions {
    pub(crate) ca_certificate: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) domain_name: Option<String>,
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("ca_certificate", &self.ca_certificate.is_some())
            .field("identity", &self.identity.is_some())
            .field("domain_name", &self.domain_name)
            .finish()
    }
}
