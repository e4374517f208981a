//! `portcullis check`: loads a configuration as `run` does and prints its problems. Binds nothing.

use std::path::Path;

use portcullis_gateway::config::Severity;
use portcullis_gateway::{ProcessState, Runtime};

use crate::output::say;
use crate::report::{Failure, print_problems};

pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let loaded =
        Runtime::load(path, &ProcessState::new()).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    print_problems(&loaded.diagnostics);
    let suffix = if loaded.diagnostics.count(Severity::Warning) == 0 { "" } else { ", with warnings" };
    say!("{}: valid{suffix}", path.display());
    Ok(())
}
