//! The domain in plain C.

use std::time::Duration;

use moai_memory::{Domain, Job, MemoryKind, Region, Span, Stream, Work};
use moai_transport_plugin::{TableDomain, load};

use crate::compiled;

fn domain() -> TableDomain {
    load(&compiled("device.c", &[])).unwrap().domains[0].clone()
}

fn span(region: &Region, offset: u64, bytes: u64) -> Span {
    Span {
        hold: region.hold(),
        offset,
        bytes,
    }
}

fn copy(stream: &mut dyn Stream, work: Work, spans: Vec<Span>, buffer: Vec<u8>) -> Vec<u8> {
    let job = Job {
        name: 9,
        work,
        spans,
        buffer,
    };
    stream.submit(job).unwrap();
    assert!(stream.wait(Duration::from_secs(5)));
    let finished = stream.completed().unwrap();
    finished.outcome.unwrap();
    assert_eq!(finished.job.name, 9);
    finished.job.buffer
}

#[test]
fn bytes_come_back_from_its_memory_also_when_it_is_split_and_when_another_has_imported_it() {
    let domain = domain();
    assert_eq!((domain.name(), domain.kind()), ("device", MemoryKind::Sim));
    assert!(!domain.runs_kernels());
    let region = domain.allocate(8192).unwrap();
    assert!(
        region.host_bytes().is_none(),
        "the host has no access to it"
    );
    let mut stream = domain.stream().unwrap();
    let bytes: Vec<u8> = (0..100).collect();
    let spans = vec![span(&region, 10, 60), span(&region, 5000, 40)];
    copy(&mut *stream, Work::FromHost, spans, bytes.clone());
    let hold = region.hold();
    let export = hold.export().expect("it can be exported");
    let fd = export.fd.try_clone_to_owned().unwrap();
    let imported = domain.import(fd, export.offset, export.len, false).unwrap();
    assert!(!imported.hold().is_writable());
    let (first, rest) = region.split_at(4096);
    for (of, offset) in [(&rest, 5000 - 4096), (&imported, 5000)] {
        let seen = copy(
            &mut *stream,
            Work::ToHost,
            vec![span(of, offset, 40)],
            Vec::new(),
        );
        assert_eq!(seen, bytes[60..]);
    }
    let seen = copy(
        &mut *stream,
        Work::ToHost,
        vec![span(&first, 10, 60)],
        Vec::new(),
    );
    assert_eq!(seen, bytes[..60]);
    drop((first, rest));
    let seen = copy(
        &mut *stream,
        Work::ToHost,
        vec![span(&imported, 10, 2)],
        Vec::new(),
    );
    assert_eq!(seen, [0, 1]);
    let file = std::fs::File::open("/dev/zero").unwrap();
    let refused = domain
        .import(file.into(), 0, 10, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("sealed against shrinking"), "{refused}");
    let absurd = domain.allocate(u64::MAX).unwrap_err();
    assert!(
        matches!(absurd, moai_memory::RegionError::OutOfMemory { .. }),
        "{absurd:?}"
    );
}

#[test]
fn its_memory_moves_over_tcp_like_any_device_s() {
    use moai_transport::{Capabilities, Operation, Provider, Reach};
    let interface = moai_transport_tcp::TcpProvider::default().open().unwrap();
    let can: &Capabilities = interface.capabilities();
    assert_ne!(can.reach(Operation::Put, MemoryKind::Sim), Reach::No);
    let mut copies = moai_transport::Copies::new(4);
    let domain = domain();
    let region = domain.allocate(4096).unwrap();
    let hold = region.hold();
    let device = hold.domain().expect("a transport finds its device");
    assert_eq!(device.id(), domain.id());
    assert!(copies.open(device).unwrap().is_some());
    for ticket in 0..100_u64 {
        let mut job = copies.job(Work::ToHost);
        job.spans.push(span(&region, ticket, 9));
        copies.begin(device.id(), ticket, job).unwrap();
    }
    let mut ended = 0;
    while !copies.is_empty() {
        copies.wait();
        while let Some((_, finished)) = copies.ended() {
            finished.outcome.unwrap();
            assert_eq!(finished.job.buffer, [0; 9]);
            ended += 1;
        }
    }
    assert_eq!(ended, 100);
}
