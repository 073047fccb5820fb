//! Certificates of an authority, a server and a client.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority, a certificate for `127.0.0.1` and `localhost`, and one for a client, all in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    pub(crate) ca: String,
    pub(crate) server: Identity,
    pub(crate) client: Identity,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// The client's side of TLS.
#[derive(Clone, Debug)]
pub(crate) struct ClientTls {
    pub(crate) ca: String,
    pub(crate) identity: Option<Identity>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = named("etcd-lock test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let ca = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { ca, server: issue(&issuer, "etcd"), client: issue(&issuer, "client") }
    }

    /// Writes the server's files, and returns the flags that name them.
    pub(super) fn server_args(&self, dir: &Path) -> Vec<String> {
        let write = |name: &str, text: &str| {
            let file = dir.join(name);
            std::fs::write(&file, text).expect("a file can be written");
            file.display().to_string()
        };
        vec![
            format!("--cert-file={}", write("server.crt", &self.server.certificate)),
            format!("--key-file={}", write("server.key", &self.server.key)),
        ]
    }

    /// Like `server_args`, for a server that requires certificates of its clients. (In etcd 3.4 the file of the CA is
    /// enough for that.)
    pub(super) fn mutual_server_args(&self, dir: &Path) -> Vec<String> {
        let ca = dir.join("ca.crt");
        std::fs::write(&ca, &self.ca).expect("a file can be written");
        let mut args = self.server_args(dir);
        args.extend(["--client-cert-auth".into(), format!("--trusted-ca-file={}", ca.display())]);
        args
    }

    /// The client's settings, with or without a certificate of its own.
    pub(crate) fn client(&self, with_identity: bool) -> ClientTls {
        ClientTls { ca: self.ca.clone(), identity: with_identity.then(|| self.client.clone()) }
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn issue(issuer: &Issuer<'_, KeyPair>, name: &str) -> Identity {
    let mut params =
        CertificateParams::new(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("valid host names");
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // The server's certificate also serves a client: etcd's own gateway connects with it.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate").pem();
    Identity { certificate, key: key.serialize_pem() }
}
