//! `portcullis`: arguments enter, messages and an exit code leave. What the product does is in the libraries.
#![warn(clippy::print_stdout, clippy::print_stderr, reason = "they panic if nobody reads: see `output`")]

mod check;
mod cli;
mod device;
mod logging;
mod output;
mod passwd;
mod pki;
#[cfg(feature = "embedded-broker")]
mod quickstart;
mod replace;
mod report;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Arguments, Command};
use report::Failure;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match dispatch(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    portcullis_gateway::crypto::install_crypto_provider();
    match command {
        #[cfg(feature = "embedded-broker")]
        Command::Quickstart(arguments) => quickstart::quickstart(&arguments),
        Command::Run(arguments) => run::run(&arguments.config),
        Command::Check(arguments) => check::check(&arguments.config),
        Command::Passwd { file, user } => passwd::passwd(&file, &user),
        Command::Device(arguments) => device::device(arguments),
        Command::Pki(arguments) => pki::pki(arguments),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "portcullis", &mut script);
            output::bytes(&script);
            Ok(())
        }
        Command::Man { dir: None } => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            output::bytes(&page);
            Ok(())
        }
        Command::Man { dir: Some(dir) } => {
            let written =
                std::fs::create_dir_all(&dir).and_then(|()| clap_mangen::generate_to(Arguments::command(), &dir));
            let error =
                |error| anyhow::Error::new(error).context(format!("cannot write manual pages to `{}`", dir.display()));
            written.map_err(|cause| error(cause).into())
        }
    }
}
