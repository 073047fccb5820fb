//! From the command line and the environment to the library's options.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions, LockViewer};

use crate::exit::{CONFIG, Failure};
use crate::options::{Connection, Holding};

/// Where `etcdctl` looks, too.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";

/// Below it a hold would be given up in time, but the command not dead yet.
const MIN_MARGIN: Duration = Duration::from_millis(250);

/// A connection with everything read that it needs. It has secrets, and so no `Debug`.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) endpoints: Vec<String>,
    pub(crate) root: String,
    pub(crate) timeout: Duration,
    /// Name and password.
    pub(crate) user: Option<(String, String)>,
    pub(crate) tls: Option<Tls>,
}

/// The contents of the files that make up TLS.
#[derive(Clone)]
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without TLS they are only refused"))]
pub(crate) struct Tls {
    pub(crate) cacert: Option<Vec<u8>>,
    /// The certificate and its key.
    pub(crate) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Settings {
    pub(crate) fn read(connection: &Connection) -> Result<Self, Failure> {
        Ok(Self {
            endpoints: endpoints(connection),
            root: connection.root.clone(),
            timeout: connection.timeout,
            user: credentials(connection)?,
            tls: tls(connection)?,
        })
    }

    /// The library's options for these settings.
    pub(crate) fn options(&self) -> Result<LockManagerOptions, Failure> {
        let mut options =
            LockManagerOptions::default().connect_timeout(self.timeout).request_timeout(self.timeout);
        if let Some((user, password)) = &self.user {
            options = options.credentials(user, password);
        }
        match &self.tls {
            Some(tls) => set_tls(options, tls.clone()),
            None => Ok(options),
        }
    }

    pub(crate) fn connect(&self, options: LockManagerOptions) -> Result<LockManager, Failure> {
        Ok(LockManager::connect(&self.endpoints, &self.root, options)?)
    }

    pub(crate) fn view(&self) -> Result<LockViewer, Failure> {
        Ok(LockViewer::connect(&self.endpoints, &self.root, self.options()?)?)
    }
}

/// Options of a hold whose end takes `grace`: the margin leaves a quarter of that for the deaths of a process group.
pub(crate) fn for_holding(
    options: LockManagerOptions,
    holding: &Holding,
    grace: Duration,
) -> LockManagerOptions {
    let margin = MIN_MARGIN.max(holding.ttl / 10).max(grace / 4);
    options.ttl(holding.ttl).owner(owner(holding)).safety_margin(margin)
}

/// The owner, given or by default: the library's own default.
pub(crate) fn owner(holding: &Holding) -> String {
    let default = || format!("{}/{}", gethostname::gethostname().to_string_lossy(), std::process::id());
    holding.owner.clone().unwrap_or_else(default)
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn endpoints(connection: &Connection) -> Vec<String> {
    if !connection.endpoints.is_empty() {
        return connection.endpoints.clone();
    }
    let etcdctl = environment("ETCDCTL_ENDPOINTS").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
    etcdctl.split(',').map(|endpoint| endpoint.trim().to_owned()).collect()
}

/// The user and the password, from whichever place they come.
fn credentials(connection: &Connection) -> Result<Option<(String, String)>, Failure> {
    // etcdctl's variable may hold both.
    let etcdctl = environment("ETCDCTL_USER");
    let (user, mut password) = match (&connection.user, etcdctl) {
        (Some(user), _) if user.contains(':') => {
            return Err(Failure::usage(
                "--user takes no password: everybody could read it; use --password-file",
            ));
        }
        (Some(user), _) => (user.clone(), None),
        (None, None) => return Ok(None),
        (None, Some(both)) => match both.split_once(':') {
            Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
            None => (both, None),
        },
    };
    if let Some(file) = &connection.password_file {
        password = Some(read_password(file, connection.reads_stdin())?);
    }
    match password.or_else(|| environment("ETCDCTL_PASSWORD")) {
        Some(password) => Ok(Some((user, password))),
        None => Err(Failure::usage(format!("user {user} needs a password: use --password-file"))),
    }
}

fn read_password(file: &Path, is_stdin: bool) -> Result<String, Failure> {
    let text = if is_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|error| unreadable(file, &error))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

fn unreadable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::new(CONFIG, format!("{} cannot be read: {error}", file.display()))
}

fn tls(connection: &Connection) -> Result<Option<Tls>, Failure> {
    let read = |given: &Option<std::path::PathBuf>, etcdctl: &str| {
        let file = given.clone().or_else(|| environment(etcdctl).map(Into::into));
        file.map(|file| std::fs::read(&file).map_err(|error| unreadable(&file, &error))).transpose()
    };
    let cacert = read(&connection.cacert, "ETCDCTL_CACERT")?;
    let identity = match (read(&connection.cert, "ETCDCTL_CERT")?, read(&connection.key, "ETCDCTL_KEY")?) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => return Err(Failure::usage("a client's certificate needs both --cert and --key")),
    };
    Ok((cacert.is_some() || identity.is_some()).then_some(Tls { cacert, identity }))
}

#[cfg(feature = "tls")]
fn set_tls(
    options: LockManagerOptions,
    Tls { cacert, identity }: Tls,
) -> Result<LockManagerOptions, Failure> {
    let mut tls = etcd_lock::TlsOptions::default();
    if let Some(cacert) = cacert {
        tls = tls.ca_certificate_pem(cacert);
    }
    if let Some((certificate, key)) = identity {
        tls = tls.identity_pem(certificate, key);
    }
    Ok(options.tls(tls))
}

#[cfg(not(feature = "tls"))]
fn set_tls(_: LockManagerOptions, _: Tls) -> Result<LockManagerOptions, Failure> {
    Err(Failure::new(CONFIG, "this etcd-lock was built without TLS: build it with the feature tls"))
}
