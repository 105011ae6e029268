//! A handler that writes down what it is told.

use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::{Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Reject};

#[derive(Default)]
pub(crate) struct Told {
    pub(crate) regions: Vec<Region>,
    pub(crate) connected: Vec<(PeerId, bool)>,
    pub(crate) messages: Vec<Vec<u8>>,
    /// Payload that was handed over whole; what landed in regions is `None`.
    pub(crate) landed: Vec<Option<Vec<u8>>>,
    pub(crate) writable: usize,
    pub(crate) closed: Vec<(PeerId, String)>,
    /// Where batches land, instead of being handed over.
    pub(crate) pieces: Vec<Piece>,
}

impl Handler for Told {
    fn connected(&mut self, peer: PeerId, incoming: bool) {
        self.connected.push((peer, incoming));
    }

    fn message(&mut self, _: PeerId, bytes: &[u8]) -> Result<(), Reject> {
        if bytes == b"unwanted" {
            return Err(Reject("nobody wants that".to_owned()));
        }
        self.messages.push(bytes.to_vec());
        Ok(())
    }

    fn landing(&mut self, _: PeerId, _: Batch) -> Result<Landing, Reject> {
        Ok(if self.pieces.is_empty() {
            Landing::Staged
        } else {
            Landing::Direct
        })
    }

    fn pieces(
        &mut self,
        _: PeerId,
        _: Batch,
        _: u32,
        _: usize,
        out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        out.append(&mut self.pieces);
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, _: PeerId, _: Batch, staged: Option<&[u8]>) -> Result<(), Reject> {
        self.landed.push(staged.map(<[u8]>::to_vec));
        Ok(())
    }

    fn writable(&mut self, _: PeerId) {
        self.writable += 1;
    }

    fn closed(&mut self, peer: PeerId, why: Closed) {
        self.closed.push((peer, format!("{why:?}")));
    }
}

/// Polls both sides until `done`.
pub(crate) fn until(
    sides: &mut [(&mut Box<dyn Interface + Send>, &mut Told)],
    what: &str,
    done: impl Fn(&[&Told]) -> bool,
) {
    let start = Instant::now();
    loop {
        for (interface, told) in &mut *sides {
            interface
                .poll(Some(Duration::from_millis(1)), *told)
                .unwrap();
        }
        let told: Vec<&Told> = sides.iter().map(|(_, told)| &**told).collect();
        if done(&told) {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "hangs waiting for {what}"
        );
    }
}
