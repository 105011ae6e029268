//! What the C ABI costs: puts and gets through shared memory, by the built-in provider and by the same one in a plug-in.
//!
//! ```text
//! cargo run --release -p moai-tests --example plugin_cost
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use moai_memory::Region;
use moai_transport::{
    Batch, Closed, Handler, Interface, Landing, PeerId, Piece, Pieces, Posted, Provider, Reject,
    Rights, Token,
};
use moai_transport_plugin::{Opening, load};
use moai_transport_shm::{Listen, ShmConfig, ShmProvider};

#[derive(Default)]
struct Side {
    regions: Vec<Region>,
    peer: Option<PeerId>,
}

impl Handler for Side {
    fn connected(&mut self, peer: PeerId, _: bool) {
        self.peer = Some(peer);
    }

    fn message(&mut self, _: PeerId, _: &[u8]) -> Result<(), Reject> {
        Ok(())
    }

    fn landing(&mut self, _: PeerId, _: Batch) -> Result<Landing, Reject> {
        Ok(Landing::Staged)
    }

    fn pieces(
        &mut self,
        _: PeerId,
        _: Batch,
        _: u32,
        _: usize,
        _: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        Err(Reject("nothing lands".to_owned()))
    }

    fn regions(&mut self) -> &mut [Region] {
        &mut self.regions
    }

    fn landed(&mut self, _: PeerId, _: Batch, _: Option<&[u8]>) -> Result<(), Reject> {
        Ok(())
    }

    fn writable(&mut self, _: PeerId) {}

    fn closed(&mut self, _: PeerId, why: Closed) {
        panic!("{why}");
    }
}

const REGION_BYTES: u64 = 8 << 20;

/// One side of a pair in this process, with so many regions.
struct Pair {
    near: Box<dyn Interface + Send>,
    here: Side,
    to: PeerId,
    number: u32,
    _far: (Box<dyn Interface + Send>, Side),
}

impl Pair {
    fn new(provider: impl Fn(bool) -> Box<dyn Provider>, regions: usize) -> Self {
        let mut near = provider(false).open().expect("it opens");
        let mut far = provider(true).open().expect("it opens");
        let (mut here, mut there) = (Side::default(), Side::default());
        there
            .regions
            .push(Region::shared_zeroed(REGION_BYTES).expect("memory"));
        here.regions
            .push(Region::shared_zeroed(REGION_BYTES).expect("memory"));
        here.regions
            .extend((1..regions).map(|_| Region::from_host(vec![0; 64])));
        let rights = Rights::READ.and(Rights::WRITE);
        let id = far
            .register(0, &there.regions[0], rights)
            .expect("it registers");
        let to = near.connect(&far.addresses()[0]).expect("it connects");
        let _ = near.send(to, b"hello").expect("it sends");
        while here.peer.is_none() || there.peer.is_none() {
            near.poll(Some(Duration::ZERO), &mut here)
                .expect("it polls");
            far.poll(Some(Duration::ZERO), &mut there)
                .expect("it polls");
        }
        let key = far
            .remote_key(there.peer.expect("connected"), id)
            .expect("a key");
        let number = near.import(to, &key).expect("it imports");
        let mut pair = Self {
            near,
            here,
            to,
            number,
            _far: (far, there),
        };
        // Until puts go directly.
        while pair.operation(true, 64, &[0]) != Posted::Done {
            pair.near
                .poll(Some(Duration::ZERO), &mut pair.here)
                .expect("it polls");
            let (far, there) = &mut pair._far;
            far.poll(Some(Duration::ZERO), there).expect("it polls");
            while pair.near.completion().is_some() {}
        }
        pair
    }

    fn operation(&mut self, is_put: bool, bytes: u32, offsets: &[u64]) -> Posted {
        let pieces = |region| Pieces {
            region,
            bytes,
            count: 1,
            stride: 0,
            offsets,
        };
        let (local, remote) = ([pieces(0)], [pieces(self.number)]);
        let memory = &mut self.here.regions;
        let posted = if is_put {
            self.near.put(memory, self.to, &local, &remote, Token(1))
        } else {
            self.near.get(memory, self.to, &local, &remote, Token(1))
        };
        posted.expect("it is posted")
    }

    /// Nanoseconds of an operation: the least of some rounds.
    fn cost_ns(&mut self, is_put: bool, bytes: u32, offsets: &[u64]) -> f64 {
        let times = (20_000_000 / (bytes as usize * offsets.len() + 2000)).clamp(5, 20_000);
        let round = |pair: &mut Self| {
            let start = Instant::now();
            for _ in 0..times {
                assert_eq!(
                    black_box(pair.operation(is_put, bytes, offsets)),
                    Posted::Done
                );
            }
            start.elapsed().as_nanos() as f64 / times as f64
        };
        (0..15).map(|_| round(self)).fold(f64::INFINITY, f64::min)
    }
}

fn main() {
    let plugin = load(&moai_tests::plugins::example("plugin_sim")).expect("the plug-in loads");
    let loaded = |listens| -> Box<dyn Provider> {
        let one = plugin.transports.iter().find(|one| one.name() == "sim");
        let opening = Opening {
            listens,
            ..Opening::default()
        };
        Box::new(one.expect("it is there").clone().opened(opening))
    };
    let built_in = |listens: bool| -> Box<dyn Provider> {
        Box::new(ShmProvider::new(ShmConfig {
            listen: listens.then_some(Listen::Unnamed),
            permit_peers: true,
            ..ShmConfig::default()
        }))
    };
    println!("| operation | regions lent | built in, ns | behind the ABI, ns | more, ns |");
    println!("|---|---|---|---|---|");
    for regions in [2, 256] {
        let (mut direct, mut behind) = (Pair::new(built_in, regions), Pair::new(loaded, regions));
        for (is_put, bytes, pieces) in [
            (true, 64, 1),
            (false, 64, 1),
            (true, 256, 1000),
            (false, 256, 1000),
            (true, 4 << 20, 1),
        ] {
            let offsets: Vec<u64> = (0..pieces).map(|at| at * 4096).collect();
            let [a, b] =
                [&mut direct, &mut behind].map(|pair| pair.cost_ns(is_put, bytes, &offsets));
            println!(
                "| {} of {pieces} × {bytes} B | {regions} | {a:.0} | {b:.0} | {:.0} |",
                if is_put { "put" } else { "get" },
                b - a
            );
        }
    }
}
