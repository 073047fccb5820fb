//! `completions` and `man`: what packagers install beside the program.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::exit::{CONFIG, Failure};
use crate::options::Cli;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "etcd-lock", &mut script);
    write(&script)
}

pub(crate) fn man(folder: Option<&Path>) -> Result<ExitCode, Failure> {
    let failed =
        |error: std::io::Error| Failure::new(CONFIG, format!("the manual cannot be written: {error}"));
    match folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder).map_err(failed)?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
            return write(&page);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(text: &[u8]) -> Result<ExitCode, Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text).and_then(|()| out.flush());
    written.map_err(|error| Failure::internal("writing to standard output", error))?;
    Ok(ExitCode::SUCCESS)
}
