//! Reads files whose size is bounded.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Maximum size of a file of certificates or keys, in bytes. Ten thousand certificates take about 10 MB.
pub(crate) const MAX_PEM_LEN: u64 = 16 << 20;

/// Reads a file of at most `max` bytes. The bound stops a device node or a log file, given by mistake, from filling the
/// memory.
///
/// # Errors
/// The file cannot be read, or is larger.
pub(crate) fn read(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
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
        let error = read(Path::new("/dev/zero"), MAX_PEM_LEN).unwrap_err();
        assert_eq!(error.to_string(), "it is larger than 16 MiB, the maximum");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abc").unwrap();
        assert_eq!(*read(file.path(), 3).unwrap(), b"abc");
        assert!(read(file.path(), 2).is_err());
    }
}
