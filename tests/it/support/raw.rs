//! A blocking etcd client for assertions. It shares no code with the library, and uses other requests.

use std::future::Future;
use std::thread::JoinHandle;
use std::time::Duration;

use etcd_client::{
    Client, CompactionOptions, ConnectOptions, DeleteOptions, Error, GetOptions, Permission, PutOptions,
};
use tokio::sync::oneshot;

use super::setup::{Access, ROOT_PASSWORD, User};

/// An answer that takes longer never arrives.
const PATIENCE: Duration = Duration::from_secs(15);

/// A key as etcd stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) lease: i64,
}

/// A connection with a thread of its own. It may be used on any thread, including those of a tokio runtime.
#[derive(Debug)]
pub(crate) struct Raw {
    runtime: tokio::runtime::Handle,
    client: ClientInside,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// etcd-client's `Client` has no `Debug`.
#[derive(Clone)]
struct ClientInside(Client);

impl std::fmt::Debug for ClientInside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Raw {
    #[track_caller]
    pub(crate) fn connect(access: &Access) -> Self {
        Self::try_connect(access)
            .unwrap_or_else(|why| panic!("no connection to {:?}: {why}", access.endpoints))
    }

    /// Returns etcd's error if it refuses; makes one request to find out.
    pub(crate) fn try_connect(access: &Access) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("raw-etcd".into());
        let thread = thread.spawn(move || drop(runtime.block_on(stopped))).expect("a thread can be spawned");
        let endpoints = access.endpoints.clone();
        let options = options(access);
        let client = on(&handle, async move {
            let mut client = Client::connect(endpoints, Some(options)).await?;
            match client.get("\0", None).await {
                // Permission denied for this key still proves that the user is authenticated.
                Err(Error::GRpcStatus(status)) if status.message().contains("permission denied") => {}
                other => drop(other?),
            }
            Ok::<_, Error>(client)
        })?;
        Ok(Self { runtime: handle, client: ClientInside(client), stop: Some(stop), thread: Some(thread) })
    }

    /// Any request: `raw.call(|mut client| async move { client.status().await })`.
    #[track_caller]
    pub(crate) fn call<T, F>(&self, request: impl FnOnce(Client) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        on(&self.runtime, request(self.client.0.clone()))
    }

    #[track_caller]
    pub(crate) fn must<T, F>(&self, request: impl FnOnce(Client) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.call(request).unwrap_or_else(|why| panic!("etcd refused: {why}"))
    }

    /// Every key with this prefix, sorted by key.
    #[track_caller]
    pub(crate) fn keys(&self, prefix: &str) -> Vec<Kv> {
        let prefix = prefix.to_owned();
        let mut answer =
            self.must(
                |mut client| async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await },
            );
        answer.take_kvs().iter().map(Kv::new).collect()
    }

    /// The number of keys with this prefix.
    #[track_caller]
    pub(crate) fn count(&self, prefix: &str) -> u64 {
        let options = GetOptions::new().with_prefix().with_count_only();
        let prefix = prefix.to_owned();
        let answer = self.must(|mut client| async move { client.get(prefix, Some(options)).await });
        answer.count().unsigned_abs()
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> Option<Kv> {
        let key = key.to_owned();
        let answer = self.must(|mut client| async move { client.get(key, None).await });
        answer.kvs().first().map(Kv::new)
    }

    /// Puts a key, with a lease unless that is 0. Returns the revision of the put.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, value: impl Into<Vec<u8>>, lease: i64) -> i64 {
        let (key, value) = (key.to_owned(), value.into());
        let options = PutOptions::new().with_lease(lease);
        let answer = self.must(|mut client| async move { client.put(key, value, Some(options)).await });
        answer.header().expect("a header").revision()
    }

    /// Deletes one key; returns whether it existed.
    #[track_caller]
    pub(crate) fn delete(&self, key: &str) -> bool {
        let key = key.to_owned();
        self.must(|mut client| async move { client.delete(key, None).await }).deleted() == 1
    }

    /// Deletes every key with this prefix in one revision; returns how many there were.
    #[track_caller]
    pub(crate) fn delete_prefix(&self, prefix: &str) -> u64 {
        let prefix = prefix.to_owned();
        let options = DeleteOptions::new().with_prefix();
        let answer = self.must(|mut client| async move { client.delete(prefix, Some(options)).await });
        answer.deleted().unsigned_abs()
    }

    /// Grants a lease with this TTL in seconds.
    #[track_caller]
    pub(crate) fn grant(&self, seconds: i64) -> i64 {
        self.must(|mut client| async move { client.lease_grant(seconds, None).await }).id()
    }

    #[track_caller]
    pub(crate) fn revoke(&self, lease: i64) {
        self.must(|mut client| async move { client.lease_revoke(lease).await });
    }

    /// The remaining TTL of a lease; `None` if it does not exist.
    #[track_caller]
    pub(crate) fn ttl(&self, lease: i64) -> Option<Duration> {
        let answer = self.must(|mut client| async move { client.lease_time_to_live(lease, None).await });
        u64::try_from(answer.ttl()).ok().map(Duration::from_secs)
    }

    #[track_caller]
    pub(crate) fn leases(&self) -> Vec<i64> {
        let answer = self.must(|mut client| async move { client.leases().await });
        answer.leases().iter().map(etcd_client::LeaseStatus::id).collect()
    }

    /// The store's present revision: the number of commits that changed a key, plus one.
    #[track_caller]
    pub(crate) fn revision(&self) -> i64 {
        let answer = self.must(|mut client| async move { client.get("\0", None).await });
        answer.header().expect("a header").revision()
    }

    /// Compacts the history up to a revision.
    #[track_caller]
    pub(crate) fn compact(&self, revision: i64) {
        let options = CompactionOptions::new().with_physical();
        self.must(|mut client| async move { client.compact(revision, Some(options)).await });
    }

    /// Adds `root` and these users, and enables authentication.
    #[track_caller]
    pub(crate) fn enable_auth(&self, users: &[User]) {
        let users = users.to_vec();
        self.must(|mut client| async move {
            client.user_add("root", ROOT_PASSWORD, None).await?;
            client.role_add("root").await.map(drop).or_else(already_there)?;
            client.user_grant_role("root", "root").await?;
            for User { name, password, prefix } in users {
                client.user_add(&*name, &*password, None).await?;
                client.role_add(&*name).await?;
                client.role_grant_permission(&*name, Permission::read_write(prefix).with_prefix()).await?;
                client.user_grant_role(&*name, &*name).await?;
            }
            client.auth_enable().await
        });
    }

    pub(super) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    pub(super) fn client(&self) -> Client {
        self.client.0.clone()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Kv {
    fn new(kv: &etcd_client::KeyValue) -> Self {
        Self {
            key: String::from_utf8_lossy(kv.key()).into_owned(),
            value: kv.value().to_vec(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// Some releases of etcd have a role `root` already.
fn already_there(error: Error) -> Result<(), Error> {
    if error.to_string().contains("already exists") { Ok(()) } else { Err(error) }
}

fn options(access: &Access) -> ConnectOptions {
    let mut options = ConnectOptions::new().with_connect_timeout(PATIENCE);
    if let Some((name, password)) = &access.user {
        options = options.with_user(name, password);
    }
    #[cfg(feature = "tls")]
    if let Some(tls) = &access.tls {
        use etcd_client::{Certificate, Identity, TlsOptions};
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
        if let Some(identity) = &tls.identity {
            config = config.identity(Identity::from_pem(&identity.certificate, &identity.key));
        }
        options = options.with_tls(config);
    }
    options
}

/// Runs a future on the client's thread and waits for it.
#[track_caller]
fn on<T: Send + 'static>(
    runtime: &tokio::runtime::Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let (done, outcome) = std::sync::mpsc::channel();
    runtime.spawn(async move { drop(done.send(tokio::time::timeout(PATIENCE, future).await)) });
    match outcome.recv() {
        Ok(Ok(value)) => value,
        Ok(Err(_)) => panic!("etcd did not answer within {PATIENCE:?}"),
        Err(_) => panic!("the request panicked on the client's thread"),
    }
}
