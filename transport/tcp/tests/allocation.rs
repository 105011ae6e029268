//! What is warm allocates nothing. A process of its own, because it counts every allocation of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted, Reject, Rights,
    Token,
};
use moai_transport_tcp::{TcpConfig, TcpInterface};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller has promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller has promised.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller has promised.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Quiet {
    regions: Vec<Region>,
    peer: Option<PeerId>,
    messages: u64,
}

impl Handler for Quiet {
    fn connected(&mut self, peer: PeerId, _incoming: bool) {
        self.peer = Some(peer);
    }

    fn message(&mut self, _peer: PeerId, _bytes: &[u8]) -> Result<(), Reject> {
        self.messages += 1;
        Ok(())
    }

    fn landing(&mut self, _peer: PeerId, _batch: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Staged)
    }

    fn pieces(
        &mut self,
        _peer: PeerId,
        _batch: Batch,
        _from: u32,
        _most: usize,
        _out: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Ok(())
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, _peer: PeerId, _batch: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        Ok(())
    }

    fn writable(&mut self, _peer: PeerId) {}

    fn closed(&mut self, _peer: PeerId, _why: Closed) {}
}

#[test]
fn a_thousand_puts_gets_and_messages_allocate_nothing_once_warm() {
    for lanes in [1, 3] {
        let node = || Quiet {
            regions: vec![Region::host_zeroed(4 << 20).unwrap()],
            peer: None,
            messages: 0,
        };
        let listen = Some(([127, 0, 0, 1], 0).into());
        let mut far = TcpInterface::new(TcpConfig {
            listen,
            lanes,
            ..TcpConfig::default()
        })
        .unwrap();
        let mut near = TcpInterface::new(TcpConfig {
            lanes,
            ..TcpConfig::default()
        })
        .unwrap();
        let (mut here, mut there) = (node(), node());
        let to = near.connect(&far.addresses()[0]).unwrap();
        while here.peer.is_none() || there.peer.is_none() {
            near.poll(Some(Duration::from_millis(1)), &mut here)
                .unwrap();
            far.poll(Some(Duration::from_millis(1)), &mut there)
                .unwrap();
        }
        let rights = Rights::READ.and(Rights::WRITE);
        let id = far.register(0, &there.regions[0], rights).unwrap();
        let key = far.remote_key(there.peer.unwrap(), id).unwrap();
        let remote = near.import(to, &key).unwrap();
        let offsets: Vec<u64> = (0..200).map(|at| at * 9000).collect();
        let mut round = |count: u64| {
            let before = there.messages;
            for at in 0..count {
                // Pieces that are gathered, and pieces that go straight from regions.
                let bytes = [256, 8192][at as usize % 2];
                let local = Pieces {
                    region: 0,
                    bytes,
                    count: 1,
                    stride: 0,
                    offsets: &offsets,
                };
                let remote = Pieces {
                    region: remote,
                    ..local
                };
                let regions = &mut here.regions;
                let put = near
                    .put(regions, to, &[local], &[remote], Token(0))
                    .unwrap();
                let got = near
                    .get(regions, to, &[local], &[remote], Token(1))
                    .unwrap();
                assert!(put == Posted::InFlight(Token(0)) && got == Posted::InFlight(Token(1)));
                assert_eq!(near.send(to, &[7; 100]).unwrap(), Posted::Done);
                let mut ended = 0;
                while ended < 2 || there.messages <= before + at {
                    near.poll(Some(Duration::ZERO), &mut here).unwrap();
                    far.poll(Some(Duration::ZERO), &mut there).unwrap();
                    while let Some(completion) = near.completion() {
                        completion.outcome.unwrap();
                        ended += 1;
                    }
                }
            }
        };
        round(200);
        let before = ALLOCATIONS.get();
        round(1000);
        assert_eq!(ALLOCATIONS.get() - before, 0, "{lanes} lanes");
    }
}
