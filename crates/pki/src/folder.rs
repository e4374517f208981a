//! Writes the files of an authority. Private keys get mode 0600. Nothing is overwritten except the index and the CRLs, which
//! are replaced atomically.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Error;
use crate::error::file_error;

/// Writes a private key to a new file with mode 0600.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text.as_bytes(), 0o600)
}

/// Writes a new file that every user may read.
pub(crate) fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text.as_bytes(), 0o644)
}

/// Replaces a file that every user may read. Readers see either the old or the new content, never a part.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    // Left behind by a killed process that had the same process ID.
    let _ = fs::remove_file(&new);
    write(&new, bytes, 0o644)?;
    fs::rename(&new, path).map_err(file_error(path))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            Error::Exists(path.to_owned())
        } else {
            Error::File(path.to_owned(), error)
        }
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(file_error(path))
}

/// Encodes a name as a file name: every byte except letters, digits, `-`, `_` and dots after the first byte becomes `%HH`.
pub(crate) fn file_name(name: &str) -> String {
    let mut out = String::new();
    for (index, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if index > 0 => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_leave_the_folder() {
        assert_eq!(file_name("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd");
    }

    #[test]
    fn replacing_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crl");
        replace(&path, b"1").unwrap();
        replace(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
