//! An etcd for a program that needs any etcd.

use std::path::Path;

use crate::member::{Member, StartError, start, with_fresh_ports};

/// An etcd that lives as long as its program.
#[derive(Debug)]
pub struct Etcd {
    endpoints: Vec<String>,
    _member: Option<Member>,
}

impl Etcd {
    /// The cluster that `ETCD_ENDPOINTS` names (separated by commas), or else a private server with a temporary folder
    /// in `parent`. The private server is ready to serve, and ends when this is dropped or the program ends.
    ///
    /// # Errors
    /// The private server does not start; [`StartError::NotInstalled`] if etcd is not installed.
    pub fn named_or_private(parent: &Path) -> Result<Self, StartError> {
        if let Ok(endpoints) = std::env::var("ETCD_ENDPOINTS") {
            let endpoints = endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
            return Ok(Self { endpoints, _member: None });
        }
        with_fresh_ports(|| {
            let member = Member::new_in(parent, "private");
            start([&member])?;
            Ok(Self { endpoints: vec![member.endpoint()], _member: Some(member) })
        })
    }

    /// The URLs for clients.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}
