//! A control group for the command, where one can be made: it holds what has left the process group, too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

/// How often it is tried to remove a group: there is no hurry.
const LOOK: Duration = Duration::from_millis(5);

/// A group of cgroup v2 below this process's own.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new group; `None` where there is no cgroup v2, no permission, or no `cgroup.kill` (before Linux 5.14).
    pub(super) fn create() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let root = mounts.lines().find_map(cgroup2_mount)?;
        let path = Path::new(&root).join(own).join(format!("etcd-lock.{}", std::process::id()));
        let group = Self { path };
        // One of a process that had this number and could not remove it.
        if !group.is_populated() {
            remove_tree(&group.path);
        }
        fs::create_dir(&group.path).ok()?;
        if group.path.join("cgroup.kill").exists() {
            return Some(group);
        }
        group.remove(Duration::ZERO);
        None
    }

    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves this process into the group.
    pub(super) fn enter(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Kills every process in the group.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// The processes in the group itself.
    pub(super) fn members(&self) -> Vec<Pid> {
        let members = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        members.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    /// Whether a process is in the group, or in one below it.
    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// Removes the group once no process is in it, with those that the command has made below it.
    pub(super) fn remove(&self, limit: Duration) {
        let start = Instant::now();
        // The kernel needs a moment for the last process, and more if that has much memory.
        while !remove_tree(&self.path) && start.elapsed() < limit {
            thread::sleep(LOOK);
        }
    }
}

/// Removes a group and all below it, as far as they are empty; whether it is gone.
fn remove_tree(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for below in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&below.path());
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}

/// The mount point in a line of `mountinfo`, if it is cgroup v2's root: `ID PARENT DEV / POINT OPTIONS - cgroup2 ...`.
fn cgroup2_mount(line: &str) -> Option<String> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (after.starts_with("cgroup2 ") && root == "/").then(|| point.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_cgroup_v2_is_found() {
        let line = "35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(cgroup2_mount(line).as_deref(), Some("/sys/fs/cgroup"));
        let old = "33 32 0:28 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu";
        assert_eq!(cgroup2_mount(old), None);
    }
}
