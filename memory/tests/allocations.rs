//! A stream allocates nothing once its jobs are warm. By itself, because it counts what all the process allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use moai_memory::sim::{DeviceMemory, SimConfig, SimDevice};
use moai_memory::{Job, Span, Stream, Work};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn jobs_that_are_used_again_allocate_nothing() {
    let device = SimDevice::new(SimConfig::default());
    let region = device.allocate(1 << 20).unwrap();
    let mut stream = device.stream().unwrap();
    for name in 0..8 {
        let span = |piece: u64| Span {
            hold: region.hold(),
            offset: (piece * 8 + name) << 12,
            bytes: 4096,
        };
        let work = match name {
            0..4 => Work::ToHost,
            4..6 => Work::FromHost,
            _ => Work::Kernel(Box::new(|_: &mut DeviceMemory<'_>| {})),
        };
        let (spans, buffer) = ((0..16).map(span).collect(), vec![0; 16 << 12]);
        let job = Job {
            name,
            work,
            spans,
            buffer,
        };
        stream.submit(job).unwrap();
    }
    let mut again = |rounds| {
        let mut left = rounds;
        while left > 0 {
            if let Some(finished) = stream.completed() {
                finished.outcome.unwrap();
                stream.submit(finished.job).unwrap();
                left -= 1;
            }
        }
    };
    again(100);
    let before = ALLOCATIONS.load(Relaxed);
    again(1000);
    assert_eq!(ALLOCATIONS.load(Relaxed), before);
}
