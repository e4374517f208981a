//! Listening and connected Unix sockets. Enters: a path and who may use it. Leaves: a socket whose file is removed with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

use super::inherited::InheritedUnix;
use crate::config::tables::{SocketAccess, Tcp, UnixBind};

/// The time until the second attempt to connect to a server whose queue is full. Each further one waits twice as long, up to the second
/// time, so that many who wait for a server that hangs cost little.
const QUEUE_FULL: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(640));

/// A listening socket.
#[derive(Debug)]
pub(crate) struct BoundUnix {
    listener: UnixListener,
    file: Arc<SocketFile>,
}

impl BoundUnix {
    /// The listening socket.
    pub(crate) const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Applies other settings to the socket.
    ///
    /// # Errors
    /// As those of [`SocketFile::set_access`].
    pub(crate) fn configure(&self, access: SocketAccess, settings: &Tcp) -> io::Result<()> {
        rustix::net::listen(&self.listener, i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
        // Who may connect to a socket of systemd's is for its unit to say.
        if self.file.is_own { self.file.set_access(access) } else { Ok(()) }
    }

    /// The file of the socket.
    pub(crate) const fn file(&self) -> &Arc<SocketFile> {
        &self.file
    }

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
pub(crate) fn bind_unix(bind: &UnixBind, settings: &Tcp) -> io::Result<BoundUnix> {
    let path = &*bind.path;
    remove_stale_socket(path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: id_of(path)?,
        access: Mutex::new(None),
        is_own: true,
        is_left: AtomicBool::new(false),
        wanted: bind.access,
    };
    // Before `listen`: until then, nobody can connect.
    file.set_access(bind.access)?;
    socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
    Ok(BoundUnix { listener: UnixListener::from_std(socket.into())?, file: Arc::new(file) })
}

/// Uses a listening socket that another process has opened. Its file is left to that process until
/// [`SocketFile::take_over`], or for ever if that was no gateway.
///
/// # Errors
/// The file is gone, or the system has no resources left.
pub(crate) fn adopt_unix(socket: InheritedUnix, bind: &UnixBind) -> io::Result<BoundUnix> {
    let path = &*bind.path;
    let file = SocketFile {
        path: path.to_owned(),
        id: id_of(path)?,
        // Of systemd's, that has decided who may connect.
        access: Mutex::new((!socket.is_own).then_some(bind.access)),
        wanted: bind.access,
        is_own: socket.is_own,
        is_left: AtomicBool::new(true),
    };
    Ok(BoundUnix { listener: UnixListener::from_std(socket.listener)?, file: Arc::new(file) })
}

/// Connects to a server. The caller sets the deadline.
///
/// # Errors
/// As [`connect`](super::connect).
pub(crate) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (mut pause, longest) = QUEUE_FULL;
    loop {
        match UnixStream::connect(path).await {
            // The server's queue is full, and the system does not say when it has room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
            connected => return connected,
        }
        pause = (pause * 2).min(longest);
    }
}

/// Removes the socket of an earlier process: only a socket that refuses connections, and no other file.
fn remove_stale_socket(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    // Without waiting: the queue of a process that hangs may be full.
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        // Also if its queue is full, or this process may not connect to it.
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// The file of a listening socket, removed when dropped unless it is left to another process, or another file has its place by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
    /// Who may connect; `None`: not set yet.
    access: Mutex<Option<SocketAccess>>,
    /// A gateway has made it.
    is_own: bool,
    is_left: AtomicBool,
    /// Who may connect, by the configuration that this process has started with.
    wanted: SocketAccess,
}

impl SocketFile {
    /// Leaves it to another process to remove the file.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Removes the file with this, as the process that has left it does not, and sets who may connect.
    ///
    /// # Errors
    /// As [`set_access`](Self::set_access).
    pub(crate) fn take_over(&self) -> io::Result<()> {
        self.is_left.store(false, Ordering::Relaxed);
        if self.is_own { self.set_access(self.wanted) } else { Ok(()) }
    }

    /// Whether a gateway has made the file, and not systemd.
    pub(crate) const fn is_own(&self) -> bool {
        self.is_own
    }

    /// Sets who may connect, if that is not so already.
    ///
    /// # Errors
    /// The gateway may not change the owner. Of kind `NotFound`: the file is gone, or another has its place.
    pub(crate) fn set_access(&self, access: SocketAccess) -> io::Result<()> {
        let mut current = self.access.lock();
        if *current == Some(access) {
            return Ok(());
        }
        // The file itself, whatever is put in its place meanwhile.
        let file =
            File::from(rustix::fs::open(&self.path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != self.id {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another file has the place of the socket's"));
        }
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        if access.owner.is_some() || access.group.is_some() {
            std::os::unix::fs::chown(&itself, access.owner, access.group)?;
        }
        std::fs::set_permissions(&itself, std::fs::Permissions::from_mode(access.mode))?;
        *current = Some(access);
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_own && !*self.is_left.get_mut() && id_of(&self.path).is_ok_and(|id| id == self.id) {
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
    use super::*;

    fn bind(path: &Path) -> io::Result<BoundUnix> {
        let access = SocketAccess { mode: 0o640, owner: None, group: None };
        bind_unix(&UnixBind { path: Arc::from(path), access }, &Tcp::default())
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

    #[tokio::test]
    async fn who_may_connect_is_changed_of_the_socket_itself_only() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("x.sock"), dir.path().join("other"));
        let bound = bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let access = |mode| SocketAccess { mode, owner: None, group: None };
        bound.file().set_access(access(0o600)).unwrap();
        assert_eq!(mode(&path), 0o600);
        std::fs::write(&other, "").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bound.file().set_access(access(0o666)).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert_eq!(bound.file().set_access(access(0o666)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(mode(&other), 0o600);
    }

    #[tokio::test]
    async fn a_socket_whose_queue_is_full_is_in_use_and_clients_of_it_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let full = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        full.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        full.listen(0).unwrap();
        let _first = UnixStream::connect(&path).await.unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let waiting = tokio::time::timeout(Duration::from_millis(60), connect_unix(&path)).await;
        assert!(waiting.is_err());
        let connecting = tokio::spawn(async move { connect_unix(&path).await });
        full.accept().unwrap();
        connecting.await.unwrap().unwrap();
    }
}
