//! `portcullis check`.

use std::path::Path;

use portcullis_gateway::config::Severity;
use portcullis_gateway::{ProcessState, Runtime};

use crate::report::{Failure, print_problems};

pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let loaded =
        Runtime::load(path, &ProcessState::new()).map_err(|problems| Failure::Configuration(Box::new(problems)))?;
    print_problems(&loaded.diagnostics);
    let warnings = loaded.diagnostics.count(Severity::Warning);
    let suffix = if warnings == 0 { "" } else { ", with warnings" };
    println!("{}: can be used{suffix}", path.display());
    Ok(())
}
