//! The configuration as typed: read, checked for grammar, every problem with its place. What it *means* is compiled by
//! [`crate::Runtime`].

mod load;
pub mod model;
mod problem;
mod value;

pub use load::Document;
pub(crate) use load::suggest;
pub use problem::{Complaint, Problem, Problems, Severity};
pub use value::{At, ByteSize, Cidr, OneOrMany, Period, Secret, Timeout};

/// Whether others than the owner and the group can read a file that is to be kept secret.
pub(crate) fn is_exposed(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0)
}

/// The JSON schema of the configuration file, for editors and reviewers.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(model::Config).to_value()
}
