//! Go's `concurrency.Mutex`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Setting;
use crate::options::work_dir;

/// The folder of Debian's Go libraries.
const DEBIAN: &str = "/usr/share/gocode";

/// The Go program, built.
#[derive(Debug)]
pub(crate) struct Go {
    program: PathBuf,
}

impl Go {
    /// Builds it, or returns the reason why it is missing.
    pub(crate) fn build() -> Result<Self, String> {
        let install = |missing: &str| {
            format!("{missing}. On Debian and Ubuntu: apt-get install golang-go golang-etcd-server-dev")
        };
        let version = Command::new("go").arg("version").stderr(Stdio::null()).output();
        if !version.is_ok_and(|version| version.status.success()) {
            return Err(install("Go is not installed"));
        }
        let own = std::env::var("GOPATH").unwrap_or_default();
        let has = |path: &str| {
            let mut roots = std::env::split_paths(&own).chain([PathBuf::from(DEBIAN)]);
            roots.any(|root| root.join("src").join(path).is_dir())
        };
        let tag = if has("go.etcd.io/etcd/client/v3/concurrency") {
            "etcd35"
        } else if has("go.etcd.io/etcd/clientv3/concurrency") {
            "etcd34"
        } else {
            return Err(install("etcd's client for Go is not installed"));
        };
        let program = work_dir().join("peers-go");
        let mut build = Command::new("go");
        build.args(["build", "-tags", tag, "-o"]).arg(&program).arg(".");
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go"));
        let path = if own.is_empty() { DEBIAN.to_owned() } else { format!("{own}:{DEBIAN}") };
        build.env("GO111MODULE", "off").env("GOPATH", path).env_remove("GOFLAGS");
        let built = build.output().map_err(|error| format!("go cannot be run: {error}"))?;
        if !built.status.success() {
            return Err(format!("go build failed:\n{}", String::from_utf8_lossy(&built.stderr)));
        }
        Ok(Self { program })
    }

    /// The command that starts one of its processes.
    pub(crate) fn command(&self, setting: &Setting) -> Command {
        let shape = setting.row.shape;
        let mut command = Command::new(&self.program);
        command.arg(format!("-endpoint={}", setting.endpoints[0]));
        command.arg(format!("-prefix={}", setting.prefix));
        command.arg(format!("-workers={}", shape.workers_each()));
        command.arg(format!("-shared={}", shape.is_shared()));
        command.arg(format!("-names={}", shape.names()));
        // etcd's client for Go logs the end of every session there.
        command.stderr(Stdio::null());
        command
    }
}
