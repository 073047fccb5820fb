// What every example begins with: an etcd to talk to, and the library's log on the terminal.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs etcd until its standard input, a pipe from the example, is closed, however the example ends.
const KEEPER: &str = r#"
trap '' HUP
dir=$1; shift
exec 3<&0 </dev/null
"$@" 3<&- >"$dir/log" 2>&1 &
etcd=$!
read -r _ <&3
kill -9 $etcd
wait
rm -rf "$dir"
"#;

/// An etcd for the time of an example.
#[derive(Debug)]
pub(crate) struct Etcd {
    endpoints: Vec<String>,
    _keeper: Option<Keeper>,
}

impl Etcd {
    pub(crate) fn endpoints(&self) -> &[String] {
        &self.endpoints
    }
}

/// The cluster that `ETCD_ENDPOINTS` names (separated by commas), or else a private etcd on a free port in a temporary
/// folder, which ends with the example.
pub(crate) fn etcd() -> Etcd {
    etcd_in(&std::env::temp_dir())
}

/// The same, with the private etcd's folder in this one.
pub(crate) fn etcd_in(parent: &Path) -> Etcd {
    if let Ok(endpoints) = std::env::var("ETCD_ENDPOINTS") {
        let endpoints = endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
        return Etcd { endpoints, _keeper: None };
    }
    match Keeper::start(parent) {
        Ok((endpoint, keeper)) => Etcd { endpoints: vec![endpoint], _keeper: Some(keeper) },
        Err(why) => {
            eprintln!("{why}");
            std::process::exit(1);
        }
    }
}

/// Shows what the library logs, from `info` on; `RUST_LOG=etcd_lock=debug` shows more.
#[allow(dead_code, reason = "programs that use this module without a terminal do not")]
pub(crate) fn show_logs() {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("etcd_lock=info"))
        .format(|out, record| {
            writeln!(out, "   | {} {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
}

#[derive(Debug)]
struct Keeper {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Keeper {
    fn start(parent: &Path) -> Result<(String, Self), String> {
        let etcd = find_etcd().ok_or(
            "This program needs an etcd, and found none. Either\n\
             - run ./setup.sh, which installs what is missing, or\n\
             - set ETCD_ENDPOINTS to the address of an etcd of yours, for example http://127.0.0.1:2379.",
        )?;
        let mut log = String::new();
        for _ in 0..3 {
            let (port, dir) =
                free_port_and_folder(parent).map_err(|error| format!("No place for an etcd: {error}"))?;
            let keeper =
                Self::spawn(&etcd, port, &dir).map_err(|error| format!("Cannot start sh: {error}"))?;
            match wait_until_ready(port, &dir.join("log")) {
                Ok(()) => return Ok((format!("http://127.0.0.1:{port}"), keeper)),
                // Perhaps somebody else was faster with the port.
                Err(lines) => log = lines,
            }
        }
        Err(format!("etcd does not start. Its log ends so:\n{log}"))
    }

    fn spawn(etcd: &Path, port: u16, dir: &Path) -> io::Result<Self> {
        let client = format!("http://127.0.0.1:{port}");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "keeper"]).arg(dir).arg(etcd);
        command.arg(format!("--data-dir={}", dir.join("data").display()));
        command
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"));
        // A single member has no peers; any port will do.
        command.arg("--listen-peer-urls=http://127.0.0.1:0");
        // A group of its own: Ctrl-C ends the example, and the pipe tells the keeper.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut shell = command.spawn()?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

fn find_etcd() -> Option<PathBuf> {
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|file| file.is_file())
    };
    std::env::var_os("ETCD_BIN").map(PathBuf::from).or_else(on_path)
}

fn free_port_and_folder(parent: &Path) -> io::Result<(u16, PathBuf)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let dir = parent.join(format!("etcd-lock-example-{}-{port}", std::process::id()));
    std::fs::create_dir(&dir)?;
    Ok((port, dir))
}

/// Waits until etcd says that it is healthy, or gives the end of its log.
fn wait_until_ready(port: u16, log: &Path) -> Result<(), String> {
    let start = Instant::now();
    loop {
        if health(port).is_ok_and(|answer| answer.contains(r#""health":"true""#)) {
            return Ok(());
        }
        let lines = std::fs::read_to_string(log).unwrap_or_default();
        if start.elapsed() > Duration::from_secs(15) || lines.contains("address already in use") {
            let lines: Vec<&str> = lines.lines().rev().take(10).collect();
            return Err(lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn health(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
