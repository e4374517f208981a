//! JSON Schemas of payloads. Enters: a file at load, then payloads. Leaves: whether a payload is JSON that meets the schema.

use std::fmt;
use std::path::PathBuf;

use jsonschema::{PatternOptions, Validator};
use serde_json::Value as Json;

use crate::config::{Complaint, Diagnostics, Reported, Setting};
use crate::util::file::read;

/// The largest file, in bytes.
const MAX_FILE_LEN: u64 = 1 << 20;

/// A compiled JSON Schema.
pub(crate) struct Schema(Validator);

impl Schema {
    /// Compiles the schema in a file. It may refer to parts of itself only: nothing is fetched. Its regular expressions are
    /// matched in linear time, because clients choose what they are matched with.
    pub(crate) fn open(path: &Setting<PathBuf>, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        let cannot = |why: String| Complaint::new(format!("cannot use the schema in {}: {why}", path.display()));
        let text = read(&path.value, MAX_FILE_LEN).map_err(|error| cannot(error.to_string()));
        let json = text.and_then(|text| {
            let parsed = serde_json::from_slice::<Json>(&text);
            parsed.map_err(|error| cannot(format!("not JSON at line {}, column {}", error.line(), error.column())))
        });
        let compiled = json.and_then(|json| {
            let options = jsonschema::options().offline().with_pattern_options(PatternOptions::regex());
            options.build(&json).map_err(|error| {
                let (place, message) = (error.instance_path().to_string(), error.to_string());
                let hint = if message.contains("Retriev") {
                    "`$ref` works within the file: copy the other schema into its `$defs`"
                } else if message.contains("regex") {
                    "patterns are matched in linear time: they have no look-around and no back-references"
                } else {
                    "validate the file against the meta-schema of JSON Schema"
                };
                let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
                cannot(format!("{place}{message}")).hint(hint)
            })
        });
        compiled.map(Self).map_err(|complaint| diagnostics.error(path, complaint))
    }

    /// Whether the payload is JSON that meets the schema.
    pub(crate) fn accepts(&self, payload: &[u8]) -> bool {
        serde_json::from_slice::<Json>(payload).is_ok_and(|json| self.0.is_valid(&json))
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schema")
    }
}
