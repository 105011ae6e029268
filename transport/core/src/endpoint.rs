//! One connected peer of an interface.

use moai_memory::Region;

use crate::{Batch, Error, Interface, Path, PeerId, Pieces, Posted, Token};

/// A peer, with the interface through which it is reached: what can be asked of one peer.
///
/// ```no_run
/// # use moai_transport::{Endpoint, Interface, PeerId, Error};
/// # fn example(interface: &mut dyn Interface, peer: PeerId) -> Result<(), Error> {
/// let mut endpoint = Endpoint::new(interface, peer);
/// let _ = endpoint.send(b"hello")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Endpoint<'a> {
    interface: &'a mut dyn Interface,
    peer: PeerId,
}

impl<'a> Endpoint<'a> {
    /// The endpoint of `peer`.
    pub fn new(interface: &'a mut dyn Interface, peer: PeerId) -> Self {
        Self { interface, peer }
    }

    /// The peer.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// As [`Interface::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(&mut self, message: &[u8]) -> Result<Posted, Error> {
        self.interface.send(self.peer, message)
    }

    /// As [`Interface::post`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn post(&mut self, batch: Batch, fill: &mut dyn FnMut(&mut [u8])) -> Result<Posted, Error> {
        self.interface.post(self.peer, batch, fill)
    }

    /// As [`Interface::import`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn import(&mut self, key: &[u8]) -> Result<u32, Error> {
        self.interface.import(self.peer, key)
    }

    /// As [`Interface::put`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn put(
        &mut self,
        memory: &mut [Region],
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.interface.put(memory, self.peer, local, remote, token)
    }

    /// As [`Interface::get`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get(
        &mut self,
        memory: &mut [Region],
        local: &[Pieces<'_>],
        remote: &[Pieces<'_>],
        token: Token,
    ) -> Result<Posted, Error> {
        self.interface.get(memory, self.peer, local, remote, token)
    }

    /// As [`Interface::map`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn map(&mut self, remote: u32) -> Result<Region, Error> {
        self.interface.map(self.peer, remote)
    }

    /// As [`Interface::flush`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn flush(&mut self, token: Token) -> Result<Posted, Error> {
        self.interface.flush(self.peer, token)
    }

    /// What carries the bytes, and why; `None` once the peer is gone.
    #[must_use]
    pub fn path(&self) -> Option<Path> {
        self.interface.path(self.peer)
    }
}
