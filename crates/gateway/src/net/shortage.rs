//! Tells the gateway's own shortage from a failure of the peer.

use std::io;

use rustix::io::Errno;

/// Whether an operation on a socket failed because this machine lacks descriptors, memory or local ports. The peer is not
/// to blame.
pub(crate) fn is_own_shortage(error: &io::Error) -> bool {
    let own =
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL, Errno::ADDRINUSE, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|errno| own.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_is_no_shortage() {
        for (errno, expected) in [
            (Errno::MFILE, true),
            (Errno::ADDRNOTAVAIL, true),
            (Errno::CONNREFUSED, false),
            (Errno::HOSTUNREACH, false),
            (Errno::TIMEDOUT, false),
        ] {
            assert_eq!(is_own_shortage(&errno.into()), expected, "{errno}");
        }
        assert!(!is_own_shortage(&io::ErrorKind::TimedOut.into()));
    }
}
