//! The configuration file. Enters: a path. Leaves: [`Settings`], valid by type, with every default filled in, and
//! [`Diagnostics`], every problem with its location. Other modules never see TOML or spans: they take [`Setting`]s and
//! report problems of the files and expressions that these name through [`Diagnostics`].

mod diagnostics;
mod document;
mod elsewhere;
mod explain;
mod lints;
mod secrets;
mod syntax;
pub mod tables;
mod values;

use std::path::Path;

pub(crate) use diagnostics::warn_if_exposed;
pub use diagnostics::{Complaint, Diagnostic, Diagnostics, Reported, Severity};
pub(crate) use lints::{Demand, UpstreamDemand};
pub use tables::Settings;
pub use values::{ByteSize, Cidr, Located, Location, OneOrMany, Origin, Period, Secret, Setting, Timeout};

use document::Document;
use portcullis_registry::Url;

/// Reads and validates a file. If the diagnostics contain an error, the settings are incomplete: use them only to find
/// further problems in files and expressions.
pub fn load(path: &Path) -> (Settings, Diagnostics) {
    let (model, document) = Document::read(path);
    validate(&model, document)
}

/// The URLs of the registries that a file names. Other errors in the file do not matter.
///
/// # Errors
/// The file cannot be read, or a URL is invalid.
pub fn registry_urls(path: &Path) -> Result<Vec<Url>, Diagnostics> {
    let (model, mut document) = Document::read::<tables::Model>(path);
    let urls = tables::registry_urls(&model.authenticator, &mut document);
    if document.diagnostics.has_errors() { Err(document.diagnostics) } else { Ok(urls) }
}

/// Like [`load`], for text that stands in for the content of the file `path`.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn parse(path: &Path, source: &str) -> (Settings, Diagnostics) {
    let (model, document) = Document::parse(path, source);
    validate(&model, document)
}

fn validate(model: &tables::Model, mut document: Document) -> (Settings, Diagnostics) {
    let settings = tables::validate(model, &mut document);
    lints::run(&settings, &mut document.diagnostics);
    (settings, document.diagnostics)
}

/// The JSON schema of the configuration file, for editors and reviewers.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(tables::Model).to_value();
    remove_null_defaults(&mut schema);
    schema
}

/// schemars writes `null` as the default of an optional key, and TOML has no `null`.
fn remove_null_defaults(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(fields) => {
            if fields.get("default").is_some_and(serde_json::Value::is_null) {
                fields.remove("default");
            }
            fields.values_mut().for_each(remove_null_defaults);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_null_defaults),
        _ => {}
    }
}
