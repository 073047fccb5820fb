//! The processes of one contestant: one for each session where sessions contend, as in production, otherwise one.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use crate::part::Part;
use crate::window::{Figures, Sheet, Window};
use crate::{Setting, Who, ours, tasks};

/// Starts the processes, lets them begin together once all are connected, and merges their measurements.
pub(crate) fn run(who: Who, setting: &Setting, command: impl Fn() -> Command) -> Figures {
    let shape = setting.row.shape;
    // Puts wait for nothing: as many run at a time as locks can be held at a time, and their latency is that of a put.
    let puts = who == Who::Puts;
    let mut crew: Vec<Child> = (0..if puts { 1 } else { shape.processes() })
        .map(|_| command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let mut told: Vec<_> =
        crew.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap())).collect();
    for told in &mut told {
        let mut ready = String::new();
        told.read_line(&mut ready).unwrap();
        assert_eq!(ready.trim_end(), "ready", "a contestant's process did not start");
    }
    let window = Window::opens_in(setting.warm_up, setting.measured);
    for child in &mut crew {
        child.stdin.take().unwrap().write_all(window.line().as_bytes()).unwrap();
    }
    let sheets: Vec<Sheet> = told.into_iter().map(|told| serde_json::from_reader(told).unwrap()).collect();
    for mut child in crew {
        assert!(child.wait().unwrap().success(), "a contestant's process failed");
    }
    window.figures(&sheets, shape.is_shared() && !puts)
}

/// The command that makes this program one of a contestant's processes.
pub(crate) fn of_this_program(who: Who, setting: &Setting) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--play", who.option(), "--only", setting.row.name]);
    command.args(["--at", &setting.endpoints.join(","), "--prefix", &setting.prefix]);
    command
}

/// Does the work of such a process.
pub(crate) fn play(part: &Part) {
    let sheet = match part.who {
        Who::LockClient => tasks::lock_client(part),
        Who::Puts => tasks::puts(part),
        // Go's processes run another program.
        Who::Ours | Who::Go => ours::run(part),
    };
    println!("{}", serde_json::to_string(&sheet).unwrap());
}
