//! Pre-shared keys and raw public keys.

use std::path::PathBuf;

use super::table::{PskFormat, PskTable, RawKeysTable};
use crate::config::diagnostics::Reported;
use crate::config::document::Document;
use crate::config::values::Setting;

/// Pre-shared keys.
#[derive(Debug)]
pub struct Psk {
    /// File of `identity:key` lines, and its format.
    pub file: Option<(Setting<PathBuf>, PskFormat)>,
    /// Whether keys of devices in the registry are accepted.
    pub registry: bool,
}

/// Raw public keys.
#[derive(Debug)]
pub struct RawKeys {
    /// File of `name:fingerprint` lines.
    pub file: Option<Setting<PathBuf>>,
    /// Whether keys of devices in the registry are accepted.
    pub registry: bool,
    /// Whether a device may present its key in a self-signed certificate.
    pub certificates: bool,
}

pub(super) fn validate_psk(
    table: &Setting<PskTable>,
    registries: usize,
    document: &mut Document,
) -> Result<Setting<Psk>, Reported> {
    let registry = validate_registry(&table.registry, registries, document)?;
    let file = match (&table.file, &table.format) {
        (Some(file), format) => {
            let hint = "\"hex\" (as in mosquitto) or \"raw\" (as in EMQX)";
            let format = document.require(format.as_ref(), table, "format", hint)?.value;
            Some((file.map(|file| document.resolve(file)), format))
        }
        (None, Some(format)) => {
            return Err(document.error(format, "`format` has no effect without `file`"));
        }
        (None, None) if !registry => {
            document.require::<()>(None, table, "file", "a file of `identity:key` lines; or set `registry = true`")?;
            None
        }
        (None, None) => None,
    };
    Ok(table.map(|_| Psk { file, registry }))
}

pub(super) fn validate_raw_keys(
    table: &Setting<RawKeysTable>,
    registries: usize,
    document: &mut Document,
) -> Result<RawKeys, Reported> {
    let registry = validate_registry(&table.registry, registries, document)?;
    if table.file.is_none() && !registry {
        document.require::<()>(None, table, "file", "a file of `name:fingerprint` lines; or set `registry = true`")?;
    }
    let file = table.file.as_ref().map(|file| file.map(|file| document.resolve(file)));
    Ok(RawKeys { file, registry, certificates: table.certificates })
}

fn validate_registry(wanted: &Setting<bool>, registries: usize, document: &mut Document) -> Result<bool, Reported> {
    if wanted.value && registries != 1 {
        let message = "`registry = true` requires exactly one [[authenticator]] of `kind = \"registry\"`";
        return Err(document.error(wanted, message));
    }
    Ok(wanted.value)
}
