//! Listening and connected Unix sockets. Enters: a path and who may use it. Leaves: a socket whose file is removed with it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};

use super::tcp::BACKLOG;
use crate::config::tables::{SocketAccess, UnixBind};

/// A listening socket.
#[derive(Debug)]
pub(crate) struct BoundUnix {
    listener: UnixListener,
    _file: SocketFile,
}

impl BoundUnix {
    /// Waits for the next connection.
    ///
    /// # Errors
    /// The limit of open files is reached.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(socket, _)| socket)
    }
}

/// Opens a listening socket. The file of an earlier process that has ended is replaced.
///
/// # Errors
/// The path is a live socket or another kind of file; the folder does not exist or cannot be written; mode or owner cannot be set.
pub(crate) fn bind_unix(bind: &UnixBind) -> io::Result<BoundUnix> {
    let path = &*bind.path;
    remove_stale_socket(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    // Before `listen`: until then, nobody can connect.
    set_access(path, &bind.access)?;
    socket.listen(BACKLOG)?;
    Ok(BoundUnix { listener: UnixListener::from_std(socket.into())?, _file: file })
}

/// Sets who may connect to the socket with this file.
///
/// # Errors
/// The gateway may not change the owner, or the file is gone.
pub(crate) fn set_access(path: &Path, access: &SocketAccess) -> io::Result<()> {
    if access.owner.is_some() || access.group.is_some() {
        std::os::unix::fs::lchown(path, access.owner, access.group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode))
}

/// Connects to a server.
///
/// # Errors
/// As [`connect`](super::connect).
pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// Removes the socket of an earlier process: only a socket that refuses connections, and no other file.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        // Also if its queue is full, or this process may not connect to it.
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a listening socket, removed when dropped unless another has its place by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id_of(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode.
fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn bind(path: &Path) -> io::Result<BoundUnix> {
        bind_unix(&UnixBind { path: Arc::from(path), access: SocketAccess { mode: 0o640, owner: None, group: None } })
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = bind(&path).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse, "it is live");
        assert!(path.exists());
        drop(bound);
        assert!(!path.exists(), "the file goes with the socket");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        for make in [
            |target: &Path, path: &Path| std::os::unix::fs::symlink(target, path),
            |_: &Path, path: &Path| std::fs::create_dir(path),
        ] {
            let other = dir.path().join("other");
            make(&dir.path().join("target.sock"), &other).unwrap();
            assert_eq!(bind(&other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            let _ = std::fs::remove_file(&other).or_else(|_| std::fs::remove_dir(&other));
        }
        assert!(bind(&dir.path().join("missing/x.sock")).is_err());
    }

    #[tokio::test]
    async fn the_file_of_another_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let ours = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }
}
