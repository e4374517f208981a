//! The listening sockets pass to another process, which replaces this one: handed over, left by this one, and taken over by that one.

use std::convert::Infallible;
use std::io;

use super::Handle;
use crate::admin::Admin;
use crate::edge::Acceptor;
use crate::net::Handover;

impl Handle {
    /// The listening sockets, for a process that replaces this one.
    ///
    /// # Errors
    /// The limit of open files is reached.
    pub fn hand_over(&self) -> io::Result<Handover> {
        let mut handover = Handover::default();
        self.try_each_socket(|socket| socket.hand_over(&mut handover))?;
        Ok(handover)
    }

    /// Whether this process passes on datagrams to another one, which it has replaced and which has not ended.
    pub fn passes_datagrams_on(&self) -> bool {
        self.0.sockets.lock().values().any(|socket| socket.acceptor.passes_on())
    }

    /// Takes over the sockets that another gateway has [left](Self::leave_sockets): what two processes cannot share.
    pub fn take_sockets_over(&self) {
        self.each_socket(Acceptor::take_over);
    }

    /// Leaves all listening sockets, with their files, to the process to which they were [handed over](Self::hand_over). Call
    /// [`drain`](Self::drain) next.
    pub fn leave_sockets(&self) {
        self.each_socket(Acceptor::leave);
        self.0.admin.lock().iter().for_each(Admin::stop);
    }

    fn each_socket(&self, visit: impl Fn(&Acceptor)) {
        let visit = |socket: &Acceptor| {
            visit(socket);
            Ok::<_, Infallible>(())
        };
        let _ = self.try_each_socket(visit);
    }

    /// In the order of the configuration, by which listeners with port 0 get theirs back.
    fn try_each_socket<E>(&self, mut visit: impl FnMut(&Acceptor) -> Result<(), E>) -> Result<(), E> {
        let (sockets, runtime) = (self.0.sockets.lock(), self.0.shared.runtime.load());
        runtime.sockets().filter_map(|(key, _)| sockets.get(&key)).try_for_each(|socket| visit(&socket.acceptor))?;
        self.0.admin.lock().iter().try_for_each(|admin| visit(admin.socket()))
    }
}
