//! TLS to etcd.

use std::fmt;

/// TLS and mutual TLS to etcd, for endpoints that begin with `https://`.
///
/// Without [`ca_certificate_pem`](Self::ca_certificate_pem) the system's root certificates are trusted. Certificates
/// and keys are PEM. `Debug` prints no key.
///
/// # Examples
///
/// ```
/// use etcd_lock::{LockManagerOptions, TlsOptions};
///
/// # let dir = std::env::temp_dir().join(format!("etcd-lock-tls-example-{}", std::process::id()));
/// # std::fs::create_dir_all(&dir)?;
/// # for file in ["ca.pem", "client.pem", "client-key.pem"] { std::fs::write(dir.join(file), "secret")? }
/// let tls = TlsOptions::default()
///     .ca_certificate_pem(std::fs::read(dir.join("ca.pem"))?)
///     .identity_pem(std::fs::read(dir.join("client.pem"))?, std::fs::read(dir.join("client-key.pem"))?);
/// let options = LockManagerOptions::default().tls(tls);
/// assert!(!format!("{options:?}").contains("secret"));
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "TLS options do nothing until they are given to `LockManagerOptions::tls`"]
pub struct TlsOptions {
    pub(crate) ca_certificate: Option<Vec<u8>>,
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(crate) domain_name: Option<String>,
}

impl TlsOptions {
    /// The certificate authority that must have signed the servers' certificates.
    ///
    /// **Default:** the system's root certificates. **Cost:** none. **Limit:** PEM, one or more certificates, which
    /// replace the system's.
    pub fn ca_certificate_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// The certificate and the private key that identify this client (mutual TLS).
    ///
    /// **Default:** none. **Cost:** none. **Limit:** PEM; the chain starts with the client's own certificate.
    pub fn identity_pem(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the servers' certificates must carry.
    ///
    /// **Default:** the host of each endpoint. **Cost:** every endpoint is checked against this one name.
    /// **Limit:** a DNS name or an IP address.
    pub fn domain_name(mut self, name: impl Into<String>) -> Self {
        self.domain_name = Some(name.into());
        self
    }
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
