//! Where peers come in.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use moai_transport::{Address, limits};
use rustix::net::SocketAddrUnix;

use crate::address::Here;
use crate::config::Listen;
use crate::socket::Socket;

/// A socket that waits for peers.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: Socket,
    pub(crate) address: Address,
    /// Removed with the listener.
    path: Option<PathBuf>,
    /// The system had no connection to give; it is asked again then.
    pub(crate) resting_until: Option<Instant>,
}

impl Listener {
    pub(crate) fn bind(listen: &Listen, here: &Here, epoch: u64) -> io::Result<Self> {
        let (name, path) = match listen {
            Listen::Unnamed => (format!("@moai-{}-{epoch:016x}", std::process::id()), None),
            Listen::Named(name) => (format!("@{name}"), None),
            Listen::Path(path) => {
                let text = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
                (text.to_owned(), Some(path.clone()))
            }
        };
        let bound = match name.strip_prefix('@') {
            Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            None => SocketAddrUnix::new(name.as_str())?,
        };
        let address = here.address(&name).ok_or(io::ErrorKind::InvalidInput)?;
        let socket = match (Socket::listen(&bound), &path) {
            (Err(error), Some(path)) if error.kind() == io::ErrorKind::AddrInUse => {
                if !is_leftover(path, &bound) {
                    return Err(error);
                }
                std::fs::remove_file(path)?;
                Socket::listen(&bound)?
            }
            (socket, _) => socket?,
        };
        Ok(Self {
            socket,
            address,
            path,
            resting_until: None,
        })
    }

    /// The next connection, if one waits.
    pub(crate) fn accept(&mut self, now: Instant) -> Option<Socket> {
        match self.socket.accept() {
            Ok(socket) => Some(socket),
            Err(error) => {
                let gone = [
                    io::ErrorKind::WouldBlock,
                    io::ErrorKind::Interrupted,
                    io::ErrorKind::ConnectionAborted,
                ];
                if !gone.contains(&error.kind()) {
                    self.resting_until = Some(now + limits::ACCEPT_PAUSE);
                }
                None
            }
        }
    }
}

/// Whether a file is the socket of a process that has ended without removing it: nobody takes a connection there. One
/// that listens sees a guest who leaves.
fn is_leftover(path: &Path, name: &SocketAddrUnix) -> bool {
    let kind = std::fs::symlink_metadata(path).map(|file| file.file_type());
    if !kind.is_ok_and(|kind| kind.is_socket()) {
        return false;
    }
    let asked = Socket::new().and_then(|socket| socket.connect(name));
    asked.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_behind_is_replaced_and_nothing_else() {
        let here = Here::look().unwrap();
        let path = std::env::temp_dir().join(format!("moai-shm-{}", std::process::id()));
        let listen = Listen::Path(path.clone());
        let bind = || Listener::bind(&listen, &here, 1);
        let first = bind().unwrap();
        let refused = bind().unwrap_err();
        assert_eq!(
            refused.kind(),
            io::ErrorKind::AddrInUse,
            "it is listened on"
        );
        // As a process that is killed leaves it.
        let name = SocketAddrUnix::new(&path).unwrap();
        drop(first);
        drop(Socket::listen(&name).unwrap());
        assert!(path.exists());
        let second = bind().unwrap();
        assert!(Socket::new().unwrap().connect(&name).is_ok());
        drop(second);
        assert!(!path.exists());
        std::fs::write(&path, "not a socket").unwrap();
        assert_eq!(bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&path).unwrap(), b"not a socket");
        std::fs::remove_file(&path).unwrap();
    }
}
