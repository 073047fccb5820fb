//! `etcd-lock` in a terminal.

use super::program;
use crate::support::manager::{connect, lock};
use crate::support::program::Program;
use crate::support::pty::Pty;
use crate::support::{SOON, eventually, shared};

/// Runs a shell script in a terminal; `etcd-lock` is in `$me`.
fn script(program: &Program, text: &str) -> Pty {
    shell(program, &["-c", text])
}

fn shell(program: &Program, args: &[&str]) -> Pty {
    Pty::start("sh", args, |command| {
        program.set_up(command);
        command.env("me", Program::path());
    })
}

/// Purpose: as a shell's job does, the command has the terminal while it runs, and gives it back.
#[test]
fn the_command_reads_from_the_terminal_and_so_does_what_follows() {
    let (program, _) = program("terminal");
    let text = r#"$me run jobs -- sh -c 'echo ready; read a; echo "first:$a"'; echo "code:$?"; read b; echo "second:$b""#;
    let mut pty = script(&program, text);
    pty.wait_for("ready");
    pty.press("one\n");
    pty.wait_for("first:one");
    pty.wait_for("code:0");
    pty.press("two\n");
    pty.wait_for("second:two");
    assert_eq!(pty.end().0, Some(0));
}

#[test]
fn control_c_is_for_the_command_alone() {
    let (program, _) = program("terminal");
    let text = r#"trap : INT; $me run jobs -- sh -c 'trap "echo trapped; exit 3" INT; echo ready; read a'; echo "code:$?""#;
    let mut pty = script(&program, text);
    pty.wait_for("ready");
    pty.press("\x03");
    pty.wait_for("trapped");
    pty.wait_for("code:3");
}

#[test]
fn control_c_ends_a_wait() {
    let (program, root) = program("terminal");
    let manager = connect(shared().access(), &root);
    let _guard = lock(&manager, "jobs");
    let mut pty =
        Pty::start(Program::path().to_str().unwrap(), &["run", "jobs", "-v", "--", "true"], |command| {
            program.set_up(command);
        });
    pty.wait_for("waiting for");
    pty.press("\x03");
    assert_eq!(pty.end().0, Some(130));
}

/// Purpose: the shell that waits for this program must learn that its job was stopped.
#[test]
fn control_z_stops_both_and_fg_continues_both() {
    let (program, root) = program("terminal");
    let manager = connect(shared().access(), &root);
    let text =
        r#"$me run jobs -- sh -c 'echo ready; read a; echo "got:$a"'; echo "stopped:$?"; fg; echo "code:$?""#;
    let mut pty = shell(&program, &["-m", "-c", text]);
    pty.wait_for("ready");
    let token = manager.lock_info("jobs").unwrap().unwrap().token;
    pty.press("\x1a");
    pty.wait_for("stopped:");
    pty.press("more\n");
    pty.wait_for("got:more");
    pty.wait_for("code:0");
    assert!(manager.lock_info("jobs").unwrap().is_none_or(|info| info.token == token));
}

/// Purpose: a job that was sent into the background no longer has the terminal, so its end must not take it from the shell.
#[test]
fn the_end_of_a_job_in_the_background_leaves_the_terminal_to_the_shell() {
    let (program, _) = program("terminal");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("end");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let program = program.with("end", pipe.to_str().unwrap());
    let text = r#"$me run jobs -- sh -c 'echo ready; read go <"$end"; exit 9'; echo "stopped:$?"; bg; echo >"$end"; wait %1
        echo "code:$?"; read a; echo "got:$a"; read b; echo "got:$b""#;
    let mut pty = shell(&program, &["-m", "-c", text]);
    pty.wait_for("ready");
    pty.press("\x1a");
    pty.wait_for("stopped:");
    pty.wait_for("code:9");
    pty.press("one\n");
    pty.wait_for("got:one");
    pty.press("two\n");
    pty.wait_for("got:two");
    assert_eq!(pty.end().0, Some(0));
}

/// Purpose: a script has no job control, so the shell around it would wait for the script while the command is stopped.
#[test]
fn control_z_stops_the_script_around_the_program_too() {
    let (program, _) = program("terminal");
    let text = r#"sh +m -c '$me run jobs -- sh -c "echo ready; read a; echo got:\$a"; echo "script goes on"'; echo "stopped:$?"
        fg; echo "code:$?""#;
    let mut pty = shell(&program, &["-m", "-c", text]);
    pty.wait_for("ready");
    pty.press("\x1a");
    assert!(!pty.wait_for("stopped:").contains("goes on"));
    pty.press("more\n");
    pty.wait_for("got:more");
    pty.wait_for("script goes on");
    pty.wait_for("code:0");
}

/// Purpose: nobody could continue a program that has its terminal to itself.
#[test]
fn control_z_has_no_effect_without_a_shell() {
    let (program, _) = program("terminal");
    let me = Program::path().to_str().unwrap();
    let command = [
        "run",
        "jobs",
        "--",
        "sh",
        "-c",
        "trap 'echo continued' CONT; echo ready; until read a; do :; done; echo got:$a",
    ];
    let mut pty = Pty::start(me, &command, |command| program.set_up(command));
    pty.wait_for("ready");
    pty.press("\x1a");
    pty.wait_for("continued");
    pty.press("more\n");
    pty.wait_for("got:more");
    assert_eq!(pty.end().0, Some(0));
}

#[test]
fn a_killed_command_leaves_the_terminal_as_it_was() {
    let (program, _) = program("terminal");
    let text =
        r#"$me run jobs --max-run 300ms --grace 0s -- sh -c 'stty raw -echo; exec sleep 600'; stty -a"#;
    let mut pty = script(&program, text);
    pty.wait_for("--max-run");
    let (code, rest) = pty.end();
    assert_eq!(code, Some(0));
    assert!(rest.contains(" icanon") && rest.contains(" echo "), "{rest}");
}

#[test]
fn a_terminal_gets_a_table_in_colours_and_without_them_on_request() {
    let (program, root) = program("terminal");
    let manager = connect(shared().access(), &root);
    let _guard = lock(&manager, "jobs");
    let list = |program: &Program| {
        let mut pty =
            Pty::start(Program::path().to_str().unwrap(), &["list"], |command| program.set_up(command));
        pty.wait_for("jobs") + &pty.end().1
    };
    let coloured = list(&program);
    assert!(coloured.contains("LOCK") && coloured.contains("\x1b[38;5;10mheld\x1b"), "{coloured:?}");
    let plain = list(&program.with("NO_COLOR", "1"));
    assert!(plain.contains("LOCK") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn unlock_says_whom_it_evicts_and_asks_first() {
    let (program, root) = program("terminal");
    let manager = connect(shared().access(), &root);
    let guard = lock(&manager, "jobs");
    let owner = manager.lock_info("jobs").unwrap().unwrap().owner.unwrap();
    let ask = || {
        let me = Program::path().to_str().unwrap();
        Pty::start(me, &["unlock", "jobs", "--any"], |command| program.set_up(command))
    };
    let mut pty = ask();
    assert!(pty.wait_for("[y/N]").contains(&owner));
    pty.press("n\n");
    assert_eq!(pty.end().0, Some(1));
    assert!(guard.is_held());
    let mut pty = ask();
    pty.wait_for("[y/N]");
    pty.press("y\n");
    assert_eq!(pty.end().0, Some(0));
    eventually(SOON, "the holder was evicted", || !guard.is_held());
}
