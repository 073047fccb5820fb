//! Exit codes, and the one line on standard error.

use super::program;
use crate::support::manager::{connect, lock};
use crate::support::program::{Ended, Program};
use crate::support::{SOON, Setup, eventually, fresh_root, shared};

/// The code, with one line on standard error that has these words; with silence if there are none.
#[track_caller]
fn assert_ends(ended: &Ended, code: i32, words: &str) {
    assert_eq!(ended.code, code, "{ended:?}");
    assert!(ended.stderr.contains(words), "{words:?} is not in {ended:?}");
    let lines = if words.is_empty() { 0 } else { 1 };
    assert_eq!(ended.stderr.lines().count(), lines, "{ended:?}");
}

#[test]
fn a_command_ends_with_its_own_code_or_with_128_and_its_signal() {
    let (program, _) = program("exits");
    for (script, code) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
    {
        assert_ends(&program.run(&["run", "jobs", "--", "sh", "-c", script]), code, "");
    }
}

#[test]
fn what_does_not_exist_is_127_and_what_cannot_be_executed_is_126() {
    let (program, _) = program("exits");
    assert_ends(&program.run(&["run", "jobs", "--", "/no/such/program"]), 127, "/no/such/program");
    assert_ends(&program.run(&["run", "jobs", "--", "/etc/passwd"]), 126, "/etc/passwd");
}

#[test]
fn a_wrong_command_line_is_64() {
    let (program, _) = program("exits");
    assert_ends(&program.run(&["run", "jobs"]), 64, "COMMAND");
    assert_ends(&program.run(&["run", "jobs", "--ttl", "6", "--", "true"]), 64, "time unit needed");
    assert_ends(
        &program.run(&["run", "jobs", "--ttl", "6s", "--", "true"]),
        64,
        "use --ttl 15s or --grace 2s",
    );
    // The advice can be given as it is.
    let limits = |ttl: &str| ["run", "jobs", "--ttl", ttl, "--grace", "25s", "--", "true"].map(str::to_owned);
    assert_ends(&program.run(&limits("30s")), 64, "use --ttl 1m15s or --grace 10s");
    assert_ends(&program.run(&limits("1m15s")), 0, "");
    assert_ends(&program.run(&["unlock", "jobs"]), 64, "--any");
    assert_ends(&program.run(&["list", "--user", "a:secret"]), 64, "--password-file");
    assert_ends(&program.run(&["list", "--user", "a"]), 64, "--password-file");
    assert_ends(&program.run(&["list", "--cert", "/dev/null"]), 64, "--key");
    let hold = ["hold", "jobs", "--user", "a", "--password-file", "-"];
    assert_ends(&program.run_with(&hold, "secret\n"), 64, "must name a file");
}

#[test]
fn an_invalid_setting_or_an_unreadable_file_is_78() {
    let (program, _) = program("exits");
    assert_ends(&program.run(&["run", "", "--", "true"]), 78, "must not be empty");
    assert_ends(&program.run(&["list", "--root", "/"]), 78, "root");
    assert_ends(&program.run(&["list", "--cacert", "/no/such/file"]), 78, "/no/such/file cannot be read");
    assert_ends(
        &program.run(&["list", "--user", "a", "--password-file", "/no/such/file"]),
        78,
        "/no/such/file",
    );
    assert_ends(&program.run(&["run", "jobs", "--status-fd", "77", "--", "true"]), 78, "--status-fd 77");
}

#[test]
fn an_etcd_out_of_reach_is_69() {
    let program = Program::at(&["http://127.0.0.1:1".into()], "/x");
    for args in
        [&["run", "jobs", "--", "true"][..], &["list"], &["hold", "jobs"], &["unlock", "jobs", "--any"]]
    {
        let args = [&["--timeout", "1s"], args].concat();
        assert_ends(&program.run(&args), 69, "http://127.0.0.1:1: Connection refused");
    }
}

#[test]
fn a_refused_user_is_77() {
    let etcd = Setup::default().user("clerk", "secret", "/elsewhere").start();
    let program = Program::new(etcd.access(), &fresh_root("exits"));
    let clerk = |password: &str, args: &[&str]| {
        let args = [&["--user", "clerk", "--password-file", "-"], args].concat();
        program.run_with(&args, &format!("{password}\n"))
    };
    assert_ends(&program.run(&["run", "jobs", "--", "true"]), 77, "not authenticated");
    assert_ends(&clerk("wrong", &["run", "jobs", "--", "true"]), 77, "not authenticated");
    assert_ends(&clerk("secret", &["run", "jobs", "--", "true"]), 77, "permission");
    assert_ends(&clerk("secret", &["list"]), 77, "permission");
    assert_ends(&clerk("secret", &["list", "--root", "/elsewhere"]), 0, "");
    let variables = program.clone().with("ETCDCTL_USER", "clerk:secret").with("ETCD_LOCK_ROOT", "/elsewhere");
    assert_ends(&variables.run(&["run", "jobs", "--", "true"]), 0, "");
}

#[cfg(feature = "tls")]
#[test]
fn certificates_are_read_from_files_that_options_or_etcdctls_variables_name() {
    let pki = crate::support::pki::Pki::new();
    let etcd = Setup::default().mutual_tls(&pki).start();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (cacert, cert, key) =
        (file("ca", &pki.ca), file("cert", &pki.client.certificate), file("key", &pki.client.key));
    let program = Program::new(etcd.access(), &fresh_root("exits"));
    let run = ["run", "jobs", "--cacert", &cacert, "--cert", &cert, "--key", &key, "--", "true"];
    assert_ends(&program.run(&run), 0, "");
    let check = program.run(&["check", "--cacert", &cacert, "--cert", &cert, "--key", &key]);
    assert!(check.code == 0 && check.stdout.contains("the leader"), "{check:?}");
    let variables =
        program.clone().with("ETCDCTL_CACERT", &cacert).with("ETCDCTL_CERT", &cert).with("ETCDCTL_KEY", &key);
    assert_ends(&variables.run(&["list"]), 0, "");
    assert_eq!(program.run(&["list", "--cacert", &cacert]).code, 69, "the server wants a certificate");
}

#[test]
fn a_busy_lock_is_75_or_what_the_options_say() {
    let (program, root) = program("exits");
    let manager = connect(shared().access(), &root);
    let guard = lock(&manager, "jobs");
    let run = |options: &[&str]| program.run(&[&["run", "jobs"], options, &["--", "true"]].concat());
    let holder = format!("held by {}", manager.lock_info("jobs").unwrap().unwrap().owner.unwrap());
    assert_ends(&run(&["-n"]), 75, &holder);
    assert_ends(&run(&["-w", "100ms"]), 75, "not acquired");
    assert_ends(&run(&["-n", "-E", "3"]), 3, &holder);
    assert_ends(&run(&["-n", "--if-busy", "skip"]), 0, "");
    assert_ends(&run(&["-w", "100ms", "--if-busy", "skip", "-E", "4"]), 4, "");
    assert_ends(&program.run(&["hold", "jobs", "-n"]), 75, &holder);
    assert_ends(&program.run(&["wait", "jobs", "-n"]), 75, &holder);
    assert_ends(&program.run(&["wait", "jobs", "-w", "100ms"]), 75, &holder);
    guard.unlock().unwrap();
    assert_ends(&run(&["-n"]), 0, "");
    assert_ends(&program.run(&["wait", "jobs", "-n"]), 0, "");
}

/// Purpose: an owner is text of somebody else, which a terminal must not obey.
#[test]
fn an_owner_is_escaped() {
    let (program, root) = program("exits");
    let manager = connect(shared().access(), &root);
    let mut running = program.start(&["hold", "jobs", "--owner", "me\x1b[2J\nall is well"]);
    eventually(SOON, "it is held", || manager.lock_info("jobs").unwrap().is_some());
    assert_ends(&program.run(&["run", "jobs", "-n", "--", "true"]), 75, r"held by me\u{1b}[2J\nall is well");
    let mut watch = program.start(&["watch", "jobs", "--table"]);
    assert!(watch.stdout().next().unwrap().contains(r"me\u{1b}[2J\nall is well"));
    drop(running.stdin());
    running.code();
}

#[test]
fn a_variable_that_is_empty_is_as_good_as_none() {
    let (program, root) = program("exits");
    let names = [
        "ETCD_LOCK_CACERT",
        "ETCD_LOCK_CERT",
        "ETCD_LOCK_KEY_FILE",
        "ETCD_LOCK_USER",
        "ETCD_LOCK_PASSWORD_FILE",
    ];
    let program = names.into_iter().fold(program, |program, name| program.with(name, ""));
    let program =
        program.with("ETCD_LOCK_ENDPOINTS", "").with("ETCDCTL_ENDPOINTS", shared().endpoints().join(","));
    assert_ends(&program.run(&["run", "jobs", "--", "true"]), 0, "");
    let nobody = program.clone().with("ETCD_LOCK_ROOT", "").run(&[
        "run",
        &root,
        "--",
        "sh",
        "-c",
        "echo $ETCD_LOCK_KEY",
    ]);
    assert!(nobody.stdout.starts_with("/locks/"), "{nobody:?}");
}

/// Purpose: without a kill there is nothing to keep a grace for.
#[test]
fn the_grace_of_a_loss_that_is_ignored_does_not_matter() {
    let (program, _) = program("exits");
    let limits = ["--on-loss", "ignore", "--ttl", "6s", "--grace", "30s"];
    assert_ends(&program.run(&[&["run", "jobs"], &limits[..], &["--", "true"]].concat()), 0, "");
}

#[test]
fn a_command_that_exceeds_max_run_ends_with_124() {
    let (program, _) = program("exits");
    let ended = program.run(&["run", "jobs", "--max-run", "200ms", "--", "sleep", "600"]);
    assert_ends(&ended, 124, "200ms");
    // A command that ignores the wish is killed after the grace.
    let stubborn = "trap '' TERM; while :; do sleep 1; done";
    let limits = ["--max-run", "200ms", "--grace", "300ms"];
    let ended = program.run(&[&["run", "jobs"], &limits[..], &["--", "sh", "-c", stubborn]].concat());
    assert_ends(&ended, 124, "200ms");
}

#[test]
fn what_is_free_is_1() {
    let (program, _) = program("exits");
    assert_ends(&program.run(&["info", "jobs"]), 1, "is free");
    assert_ends(&program.run(&["unlock", "jobs", "--any", "--yes"]), 1, "is free");
    assert_ends(&program.run(&["queue", "jobs"]), 0, "");
    assert_ends(&program.run(&["list"]), 0, "");
}

#[test]
fn help_names_every_exit_code_and_completions_and_manuals_name_every_command() {
    let (program, _) = program("exits");
    let help = program.run(&["--help"]);
    assert_eq!(help.code, 0);
    for code in ["128+N", "64", "69", "70", "75", "76", "77", "78", "124", "126", "127"] {
        assert!(help.stdout.contains(&format!("{code}  ")), "{code}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = program.run(&["completions", shell]);
        assert!(script.code == 0 && script.stdout.contains("unlock"), "{shell}");
    }
    assert!(program.run(&["man"]).stdout.contains("etcd\\-lock\\-run(1)"));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(program.run(&["man", folder.path().to_str().unwrap()]).code, 0);
    let page = std::fs::read_to_string(folder.path().join("etcd-lock-run.1")).unwrap();
    assert!(page.contains("on\\-loss"));
}
