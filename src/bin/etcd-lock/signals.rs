//! The signals that this program receives, as a channel.

use std::thread;

use etcd_lock::crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH,
};
use signal_hook::iterator::Signals;

use crate::exit::Failure;

/// Those that end a wait.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// Those that go on to a command besides.
const OTHERS: [i32; 5] = [SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP];

/// Whether this signal ends a program that waits.
pub(crate) fn ends_a_wait(signal: i32) -> bool {
    ENDING.contains(&signal)
}

/// Every signal from now on, SIGCHLD included. What was ignored when the program started stays ignored: `nohup` works,
/// also for the command.
pub(crate) fn listen() -> Result<Receiver<i32>, Failure> {
    let ignored = ignored();
    let wanted = ENDING.into_iter().chain(OTHERS).filter(|&signal| ignored & mask(signal) == 0);
    let failed = |error| Failure::internal("signals cannot be received", error);
    let mut signals = Signals::new(wanted.chain([SIGCHLD])).map_err(failed)?;
    let (sender, receiver) = unbounded();
    let forward = move || signals.forever().take_while(|&signal| sender.send(signal).is_ok()).for_each(drop);
    thread::Builder::new().name("signals".into()).spawn(forward).map_err(failed)?;
    Ok(receiver)
}

fn mask(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// The signals that this process ignores, as Linux shows them; none if it does not.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
