//! Reads files whose size is bounded.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Maximum size of a file of certificates or keys, in bytes. Ten thousand certificates take about 10 MB.
pub(crate) const MAX_PEM_LEN: u64 = 16 << 20;

/// Reads a regular file of at most `max` bytes. Anything else, given by mistake, might fill the memory (a device node) or
/// never end (a named pipe, which blocks all that wait for the file).
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Before it is opened: opening a named pipe waits for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    read_from(File::open(path)?, max)
}

/// Reads a file as [`read`], or a pipe: only where an operator waits for it.
pub(crate) fn read_any(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    read_from(File::open(path)?, max)
}

fn read_from(file: File, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    // Sized from the start: a buffer that grows leaves copies of a secret behind.
    let len = file.metadata()?.len().min(max);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1));
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {} MiB, the maximum", max >> 20)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_end_is_rejected() {
        let error = read_any(Path::new("/dev/zero"), MAX_PEM_LEN).unwrap_err();
        assert_eq!(error.to_string(), "it is larger than 16 MiB, the maximum");
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [Path::new("/dev/zero"), &pipe, dir.path()] {
            assert_eq!(read(path, MAX_PEM_LEN).unwrap_err().to_string(), "it is not a regular file");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert_eq!(*read(file.path(), 3).unwrap(), b"abc");
        assert!(read(file.path(), 2).is_err());
    }
}
