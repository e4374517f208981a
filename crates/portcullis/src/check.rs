//! `portcullis check`: loads a configuration as `run` does and prints its problems. Binds nothing.

use std::path::Path;

use portcullis_gateway::config::Severity;
use portcullis_gateway::{Machine, ProcessState, Runtime};

use crate::output::say;
use crate::report::{Failure, print_problems};

pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let state = ProcessState::on(Machine::of_this_process());
    let loaded = Runtime::load(path, &state).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    print_problems(&loaded.diagnostics);
    let suffix = if loaded.diagnostics.count(Severity::Warning) == 0 { "" } else { ", with warnings" };
    say!("{}: valid{suffix}", path.display());
    Ok(())
}
