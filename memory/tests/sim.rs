//! The device of our own: what its streams do, and what goes wrong when it is asked to.

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{pattern, seed};
use moai_memory::sim::{DeviceMemory, Faults, SimConfig, SimDevice, SimStream};
use moai_memory::{
    Domain, Finished, Job, MemoryKind, Parts, Read, Region, Span, Stream, StreamError, Work, Write,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const MS: Duration = Duration::from_millis(1);

fn device(faults: Faults) -> SimDevice {
    SimDevice::new(SimConfig {
        seed: seed(),
        faults,
        ..SimConfig::default()
    })
}

fn span(region: &Region, offset: u64, bytes: u64) -> Span {
    let hold = region.hold();
    Span {
        hold,
        offset,
        bytes,
    }
}

fn job(name: u64, work: Work, spans: Vec<Span>, buffer: Vec<u8>) -> Job {
    Job {
        name,
        work,
        spans,
        buffer,
    }
}

fn kernel(run: impl FnMut(&mut DeviceMemory<'_>) + Send + 'static) -> Work {
    Work::Kernel(Box::new(run))
}

fn is_readable(stream: &impl AsFd, wait: Duration) -> bool {
    let mut descriptors = [PollFd::new(stream, PollFlags::IN)];
    let wait = Timespec::try_from(wait).unwrap();
    poll(&mut descriptors, Some(&wait)).unwrap() == 1
}

/// Waits for the next completion as a transport does, on the descriptor.
fn next(stream: &mut SimStream) -> Finished {
    assert!(is_readable(stream, Duration::from_secs(20)), "{stream:?}");
    stream.completed().expect("the descriptor was readable")
}

/// One job, alone.
fn outcome(device: &SimDevice, job: Job) -> Finished {
    let mut stream = device.stream().unwrap();
    stream.submit(job).unwrap();
    let finished = next(&mut stream);
    assert!(stream.completed().is_none());
    finished
}

#[test]
fn bytes_come_back_as_they_went_whatever_the_order() {
    let seed = seed();
    let device = SimDevice::new(SimConfig {
        seed,
        delay: Duration::ZERO..MS,
        reorder: true,
        faults: Faults::default(),
    });
    const JOBS: u64 = 100;
    const STRIDE: u64 = 300;
    let region = device.allocate(JOBS * STRIDE).unwrap();
    let mut streams = [device.stream().unwrap(), device.stream().unwrap()];
    // Each job has three pieces that lie between those of others.
    let spans = |job: u64| -> Vec<_> {
        [2, 0, 1]
            .map(|piece| span(&region, (piece * JOBS + job) * 100, 100))
            .into()
    };
    for to_host in [false, true] {
        let mut names = Vec::new();
        let mut check = |finished: Finished| {
            finished.outcome.unwrap();
            let Job { name, buffer, .. } = finished.job;
            assert_eq!(buffer, pattern(seed + name, 300), "job {name}");
            names.push(name);
        };
        for name in 0..JOBS {
            let (work, buffer) = if to_host {
                (Work::ToHost, vec![0; 7])
            } else {
                (Work::FromHost, pattern(seed + name, 300))
            };
            let stream = &mut streams[name as usize % 2];
            let mut refused = stream.submit(job(name, work, spans(name), buffer)).err();
            while let Some(job) = refused {
                check(next(stream));
                refused = stream.submit(job).err();
            }
        }
        for stream in &mut streams {
            while stream.in_flight() > 0 {
                check(next(stream));
            }
        }
        assert!(!names.is_sorted(), "reordering must show");
        names.sort_unstable();
        assert!(names.into_iter().eq(0..JOBS));
    }
    assert!(device.faults().delayed > JOBS, "{:?}", device.faults());
}

#[test]
fn a_stream_keeps_its_order_unless_told_otherwise() {
    let device = device(Faults::default());
    let region = device.allocate(8).unwrap();
    let mut stream = device.stream().unwrap();
    for name in 0..SimStream::DEPTH as u64 {
        let bytes = name.to_ne_bytes().to_vec();
        let job = job(name, Work::FromHost, vec![span(&region, 0, 8)], bytes);
        stream.submit(job).unwrap();
    }
    for name in 0..SimStream::DEPTH as u64 {
        assert_eq!(next(&mut stream).job.name, name);
    }
}

#[test]
fn jobs_that_share_bytes_keep_their_order_in_any_case() {
    let device = SimDevice::new(SimConfig {
        seed: seed(),
        delay: MS / 10..MS / 5,
        reorder: true,
        faults: Faults::default(),
    });
    let region = device.allocate(400).unwrap();
    let mut stream = device.stream().unwrap();
    for name in 0..SimStream::DEPTH as u64 {
        let mine = span(&region, name % 4 * 100, 100);
        stream
            .submit(job(name, Work::FromHost, vec![mine], vec![name as u8; 100]))
            .unwrap();
    }
    let names: Vec<_> = (0..SimStream::DEPTH)
        .map(|_| next(&mut stream).job.name)
        .collect();
    assert!(!names.is_sorted(), "reordering must show: {names:?}");
    for chain in 0..4 {
        let chain: Vec<_> = names.iter().filter(|name| **name % 4 == chain).collect();
        assert!(chain.is_sorted(), "{names:?}");
    }
}

#[test]
fn a_full_queue_gives_the_job_back() {
    let device = SimDevice::new(SimConfig {
        delay: MS..2 * MS,
        ..SimConfig::default()
    });
    let region = device.allocate(1).unwrap();
    let mut stream = device.stream().unwrap();
    let one = |name| job(name, Work::ToHost, vec![span(&region, 0, 1)], Vec::new());
    (0..SimStream::DEPTH as u64).for_each(|name| stream.submit(one(name)).unwrap());
    // Also when all have run: completions that nobody fetches are as many.
    device.synchronize();
    assert_eq!(stream.submit(one(1000)).unwrap_err().name, 1000);
    assert_eq!(stream.in_flight(), SimStream::DEPTH);
    next(&mut stream);
    stream.submit(one(1000)).unwrap();
}

#[test]
fn the_descriptor_is_readable_exactly_while_there_are_completions() {
    let device = device(Faults::default());
    let region = device.allocate(1).unwrap();
    let mut stream = device.stream().unwrap();
    assert!(!is_readable(&stream, MS));
    for round in 1..4 {
        for name in 0..round {
            let job = job(name, Work::ToHost, vec![span(&region, 0, 1)], Vec::new());
            stream.submit(job).unwrap();
        }
        device.synchronize();
        for _ in 0..round {
            assert!(is_readable(&stream, Duration::ZERO));
            assert!(stream.completed().is_some());
        }
        assert!(!is_readable(&stream, Duration::ZERO));
        assert!(stream.completed().is_none());
    }
}

#[test]
fn a_failed_job_says_so_and_does_nothing() {
    let device = device(Faults {
        failed_per_mille: 1000,
        ..Faults::default()
    });
    let region = device.allocate(4).unwrap();
    let all = || span(&region, 0, 4);
    let finished = outcome(&device, job(1, Work::FromHost, vec![all()], vec![1; 4]));
    assert!(matches!(finished.outcome, Err(StreamError::Failed)));
    assert_eq!(finished.job.buffer, [1; 4]);
    assert_eq!(device.peek(&all()).unwrap(), [0; 4]);
    assert_eq!(device.faults().failed, 1);
}

#[test]
fn a_lost_job_reports_success_and_does_nothing() {
    let device = device(Faults {
        lost_per_mille: 1000,
        ..Faults::default()
    });
    let region = device.allocate(4).unwrap();
    let all = || span(&region, 0, 4);
    outcome(&device, job(1, Work::FromHost, vec![all()], vec![1; 4]))
        .outcome
        .unwrap();
    device.synchronize();
    assert_eq!(device.peek(&all()).unwrap(), [0; 4]);

    let finished = outcome(&device, job(2, Work::ToHost, vec![all()], vec![7; 2]));
    finished.outcome.unwrap();
    assert_eq!(
        finished.job.buffer,
        [7, 7, 0, 0],
        "as long as it should be, and not read"
    );

    let run = kernel(|_| panic!("it must not run"));
    outcome(&device, job(3, run, vec![all()], Vec::new()))
        .outcome
        .unwrap();
    assert_eq!(device.faults().lost, 3);
}

#[test]
fn a_late_job_reports_success_and_writes_afterwards() {
    let device = device(Faults {
        late_per_mille: 1000,
        ..Faults::default()
    });
    let region = device.allocate(8).unwrap();
    let mut stream = device.stream().unwrap();
    let mut early = 0;
    for round in 1..=20 {
        let half = span(&region, 0, 4);
        stream
            .submit(job(1, Work::FromHost, vec![half.clone()], vec![round; 4]))
            .unwrap();
        next(&mut stream).outcome.unwrap();
        early += u32::from(device.peek(&half).unwrap() == [round; 4]);
        device.synchronize();
        assert_eq!(device.peek(&half).unwrap(), [round; 4]);
    }
    assert!(
        early < 20,
        "every late job had written when it was reported"
    );

    // A kernel is late too, and writes no bytes but its own.
    let run = kernel(|memory| memory.bytes_mut(0)[0] = 99);
    let all = span(&region, 0, 8);
    stream
        .submit(job(2, run, vec![all.clone()], Vec::new()))
        .unwrap();
    next(&mut stream).outcome.unwrap();
    device.poke(&span(&region, 4, 4), &[5; 4]).unwrap();
    device.synchronize();
    assert_eq!(device.peek(&all).unwrap(), [99, 20, 20, 20, 5, 5, 5, 5]);

    // Reading is not.
    stream
        .submit(job(3, Work::ToHost, vec![all], Vec::new()))
        .unwrap();
    assert_eq!(next(&mut stream).job.buffer, [99, 20, 20, 20, 5, 5, 5, 5]);
    assert_eq!(device.faults().late, 21);
}

#[test]
fn what_goes_wrong_is_counted_and_depends_on_the_seed_alone() {
    let seed = seed();
    const JOBS: u64 = 500;
    let run = || {
        let device = SimDevice::new(SimConfig {
            seed,
            delay: Duration::ZERO..MS / 10,
            reorder: false,
            faults: Faults {
                failed_per_mille: 100,
                lost_per_mille: 200,
                late_per_mille: 300,
            },
        });
        let region = device.allocate(JOBS).unwrap();
        let mut stream = device.stream().unwrap();
        let mut failed = Vec::new();
        for name in 0..JOBS {
            let job = job(name, Work::FromHost, vec![span(&region, name, 1)], vec![1]);
            stream.submit(job).unwrap();
            let finished = next(&mut stream);
            failed.push(finished.outcome.is_err());
        }
        device.synchronize();
        let written = device.peek(&span(&region, 0, JOBS)).unwrap();
        (device.faults(), failed, written)
    };
    let (counts, failed, written) = run();
    let count = |of: &[bool]| of.iter().filter(|is| **is).count() as u64;
    assert_eq!(counts.failed, count(&failed), "seed {seed}");
    let missing = written.iter().filter(|byte| **byte == 0).count() as u64;
    assert_eq!(missing, counts.failed + counts.lost, "seed {seed}");
    assert!(
        counts.failed > 20 && counts.lost > 60 && counts.late > 100,
        "{counts:?}"
    );
    let (again, failed_again, written_again) = run();
    assert_eq!(counts, again, "seed {seed}");
    assert_eq!(
        (failed, written),
        (failed_again, written_again),
        "seed {seed}"
    );
}

#[test]
fn a_stream_is_dropped_with_jobs_in_flight() {
    let device = SimDevice::new(SimConfig {
        seed: seed(),
        delay: Duration::ZERO..Duration::from_secs(60),
        reorder: true,
        faults: Faults::default(),
    });
    let start = Instant::now();
    let region = device.allocate(64).unwrap();
    let mut stream = device.stream().unwrap();
    for name in 0..SimStream::DEPTH as u64 {
        let job = job(name, Work::FromHost, vec![span(&region, name, 1)], vec![1]);
        stream.submit(job).unwrap();
    }
    // Its jobs hold its memory.
    drop(region);
    drop(stream);
    device.synchronize();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "no delay is waited for"
    );
}

#[test]
fn what_was_reported_is_written_when_its_stream_is_dropped() {
    let device = device(Faults {
        late_per_mille: 1000,
        ..Faults::default()
    });
    let region = device.allocate(4).unwrap();
    let all = || span(&region, 0, 4);
    let mut stream = device.stream().unwrap();
    stream
        .submit(job(1, Work::FromHost, vec![all()], vec![1; 4]))
        .unwrap();
    next(&mut stream).outcome.unwrap();
    drop(stream);
    assert_eq!(device.peek(&all()).unwrap(), [1; 4]);
}

#[test]
fn a_kernel_has_its_spans_by_index_and_can_run_again() {
    let device = device(Faults::default());
    let (source, target) = (device.allocate(10).unwrap(), device.allocate(10).unwrap());
    device.poke(&span(&source, 0, 10), &pattern(3, 10)).unwrap();
    let run = kernel(|memory| {
        assert_eq!(memory.len(), 3);
        let (source, mut targets) = memory.split_at(1);
        let halves = source.bytes(0).chunks(5);
        for (part, half) in targets.parts().into_iter().zip(halves) {
            part.iter_mut().zip(half).for_each(|(to, from)| *to = !from);
        }
    });
    let spans = vec![
        span(&source, 0, 10),
        span(&target, 5, 5),
        span(&target, 0, 5),
    ];
    let mut stream = device.stream().unwrap();
    stream.submit(job(1, run, spans, Vec::new())).unwrap();
    let finished = next(&mut stream);
    finished.outcome.unwrap();
    let mut expected: Vec<_> = pattern(3, 10).iter().map(|byte| !byte).collect();
    expected.rotate_left(5);
    assert_eq!(device.peek(&span(&target, 0, 10)).unwrap(), expected);

    device.poke(&span(&source, 0, 10), &[0; 10]).unwrap();
    stream.submit(finished.job).unwrap();
    next(&mut stream).outcome.unwrap();
    assert_eq!(device.peek(&span(&target, 0, 10)).unwrap(), [0xff; 10]);
}

#[test]
fn a_kernel_that_panics_is_an_error_and_the_stream_goes_on() {
    let device = device(Faults::default());
    let region = device.allocate(4).unwrap();
    let all = || vec![span(&region, 0, 4)];
    let mut stream = device.stream().unwrap();
    stream
        .submit(job(
            1,
            kernel(|_| panic!("as it should")),
            all(),
            Vec::new(),
        ))
        .unwrap();
    stream
        .submit(job(2, Work::ToHost, all(), Vec::new()))
        .unwrap();
    let finished = next(&mut stream);
    assert!(matches!(finished.outcome, Err(StreamError::Panicked)));
    next(&mut stream).outcome.unwrap();
}

#[test]
fn jobs_that_cannot_be_done_are_errors() {
    let (device, other) = (device(Faults::default()), device(Faults::default()));
    let region = device.allocate(10).unwrap();
    let foreign = other.allocate(10).unwrap();
    let host = Region::from_host(vec![0; 10]);
    let failure = |work: Work, spans: Vec<Span>, bytes: usize| {
        let finished = outcome(&device, job(1, work, spans, vec![0; bytes]));
        finished.outcome.unwrap_err()
    };
    let inside = || span(&region, 0, 10);
    for elsewhere in [&foreign, &host] {
        let error = failure(Work::ToHost, vec![inside(), span(elsewhere, 0, 1)], 0);
        let kind = elsewhere.kind();
        let StreamError::NotOnDevice {
            span: 1,
            kind: told,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(kind, told);
    }
    for (offset, bytes) in [(10, 1), (0, 11), (u64::MAX, 1), (1, u64::MAX)] {
        let error = failure(Work::ToHost, vec![span(&region, offset, bytes)], 0);
        assert!(
            matches!(error, StreamError::OutOfBounds { span: 0, .. }),
            "{error}"
        );
    }
    for bytes in [0, 9, 11] {
        let error = failure(Work::FromHost, vec![inside()], bytes);
        let StreamError::BufferLength {
            buffer_bytes,
            span_bytes: 10,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!(buffer_bytes, bytes);
    }
    let overlapping = vec![
        span(&region, 0, 5),
        span(&region, 9, 1),
        span(&region, 4, 1),
    ];
    let error = failure(kernel(|_| panic!("it must not run")), overlapping, 0);
    assert!(matches!(error, StreamError::Overlap), "{error}");
}

#[test]
fn what_was_imported_for_reading_is_read_only_on_the_device_too() {
    let device = device(Faults::default());
    let region = device.allocate(4).unwrap();
    let file = common::exported(&region.hold());
    let import = device.import(file, 0, 4, false).unwrap();
    let all = || span(&import, 0, 4);
    let finished = outcome(&device, job(1, Work::FromHost, vec![all()], vec![1; 4]));
    assert!(matches!(
        finished.outcome,
        Err(StreamError::ReadOnly { span: 0 })
    ));
    let write = kernel(|memory| memory.bytes_mut(0).fill(1));
    let finished = outcome(&device, job(2, write, vec![all()], Vec::new()));
    assert!(matches!(finished.outcome, Err(StreamError::Panicked)));
    outcome(&device, job(3, Work::ToHost, vec![all()], Vec::new()))
        .outcome
        .unwrap();
    assert_eq!(device.peek(&all()).unwrap(), [0; 4]);
}

#[test]
fn parts_of_a_region_are_its_bytes_on_the_device_too() {
    let device = device(Faults::default());
    let whole = device.allocate(10).unwrap();
    device.poke(&span(&whole, 0, 10), &pattern(5, 10)).unwrap();
    let (first, rest) = whole.split_at(4);
    let spans = vec![span(&rest, 1, 5), span(&first, 0, 4)];
    let finished = outcome(&device, job(1, Work::ToHost, spans, Vec::new()));
    let pattern = pattern(5, 10);
    assert_eq!(finished.job.buffer, [&pattern[5..], &pattern[..4]].concat());
    let beyond = job(2, Work::ToHost, vec![span(&first, 0, 5)], Vec::new());
    let error = outcome(&device, beyond).outcome.unwrap_err();
    assert!(
        matches!(error, StreamError::OutOfBounds { len: 4, .. }),
        "{error}"
    );
}

#[test]
fn a_hold_leads_to_its_device() {
    let device = device(Faults::default());
    let region = device.allocate(4).unwrap();
    let hold = region.hold();
    let domain: &dyn Domain = hold.domain().unwrap();
    assert_eq!(
        (domain.id(), domain.kind()),
        (Domain::id(&device), MemoryKind::Sim)
    );
    let mut stream: Box<dyn Stream> = domain.stream().unwrap();
    stream
        .submit(job(1, Work::ToHost, vec![span(&region, 0, 4)], Vec::new()))
        .unwrap();
    assert!(is_readable(&stream, Duration::from_secs(20)));
    assert_eq!(stream.completed().unwrap().job.buffer, [0; 4]);
    for region in [
        Region::from_host(vec![1]),
        Region::shared_zeroed(1).unwrap(),
    ] {
        assert!(region.hold().domain().is_none());
    }
}
