//! The configuration file. Enters: a path. Leaves: [`Settings`], valid by type, with every default filled in, and
//! [`Diagnostics`], every problem with its location. Modules above never see TOML or spans; they get [`Setting`]s and
//! report through [`Diagnostics`] what is wrong with the files and expressions that these name.

mod diagnostics;
mod document;
mod lints;
pub mod tables;
mod values;

use std::path::Path;

pub(crate) use diagnostics::warn_if_exposed;
pub use diagnostics::{Complaint, Diagnostic, Diagnostics, Reported, Severity};
pub use tables::Settings;
pub use values::{ByteSize, Cidr, Located, Location, OneOrMany, Period, Secret, Setting, Timeout};

use document::Document;
use portcullis_registry::Url;

/// Reads and validates a file. With an error among the diagnostics, the settings are incomplete: they serve to find
/// the problems of files and expressions, and nothing else.
pub fn load(path: &Path) -> (Settings, Diagnostics) {
    let (model, document) = Document::read(path);
    validate(model, document)
}

/// The URLs of the registries that a file names, whatever else is wrong with it.
///
/// # Errors
/// The file cannot be read, or a URL is wrong.
pub fn registry_urls(path: &Path) -> Result<Vec<Url>, Diagnostics> {
    let (model, mut document) = Document::read::<tables::Model>(path);
    let urls = tables::registry_urls(&model.authenticator, &mut document);
    if document.diagnostics.has_errors() { Err(document.diagnostics) } else { Ok(urls) }
}

/// As [`load`], of text as if it were the content of the file `path`.
#[cfg(test)]
pub(crate) fn parse(path: &Path, source: &str) -> (Settings, Diagnostics) {
    let (model, document) = Document::parse(path, source);
    validate(model, document)
}

fn validate(model: tables::Model, mut document: Document) -> (Settings, Diagnostics) {
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

/// An optional key without a default has none, not `null`, which TOML does not have.
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
