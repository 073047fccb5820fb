//! A terminal, with a program in it as in a window of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::program::undisturbed;
use super::{SOON, eventually};

/// The terminal's other side: what a person would type and see.
#[derive(Debug)]
pub(crate) struct Pty {
    keys: File,
    screen: mpsc::Receiver<Vec<u8>>,
    seen: String,
    child: Child,
}

impl Pty {
    /// Runs a program in a session of its own with the terminal. (`setsid` becomes the program.)
    pub(crate) fn start(program: &str, args: &[&str], set_up: impl FnOnce(&mut Command)) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a terminal");
        let theirs = ptsname(&ours, Vec::new()).expect("a name").into_string().expect("text");
        let theirs = File::options().read(true).write(true).open(theirs).expect("the terminal's side");
        let mut command = undisturbed("setsid");
        set_up(&mut command);
        command.arg("-c").arg(program).args(args);
        let same = || theirs.try_clone().expect("a descriptor");
        command.stdin(same()).stdout(same()).stderr(same());
        let child = command.spawn().expect("setsid runs");
        let keys = File::from(ours);
        let mut read = keys.try_clone().expect("a descriptor");
        let (sender, screen) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The last process that has the terminal open ends this with an error.
            while let Ok(length) = read.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keys, screen, seen: String::new(), child }
    }

    /// Presses these keys.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    /// Waits for text on the screen, and returns all up to it.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = SOON.saturating_sub(start.elapsed());
            match self.screen.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(error) => panic!("no {text:?} ({error}), but {:?}", self.seen),
            }
        }
    }

    /// Waits for the program's end; returns its exit code and the rest of the screen.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        eventually(SOON, "the program ends", || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        });
        while let Ok(bytes) = self.screen.recv_timeout(SOON / 100) {
            self.seen += &String::from_utf8_lossy(&bytes);
        }
        (status.and_then(|status| status.code()), std::mem::take(&mut self.seen))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
