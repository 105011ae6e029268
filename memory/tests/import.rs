//! Descriptors that a peer may send instead of memory.

mod common;

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use common::exported;
use moai_memory::sim::{SimConfig, SimDevice};
use moai_memory::{MemoryKind, Region, RegionError};
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create, open,
};

/// By whatever takes descriptors.
fn refusals(fd: OwnedFd, offset: u64, len: u64) -> [RegionError; 2] {
    let device = SimDevice::new(SimConfig::default());
    let again = fd.try_clone().unwrap();
    [
        Region::import(fd, offset, len, MemoryKind::Shared, true).unwrap_err(),
        device.import(again, offset, len, true).unwrap_err(),
    ]
}

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, bytes).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn what_is_not_memory_is_refused() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let directory = std::env::temp_dir();
    let descriptors: [OwnedFd; 6] = [
        reader,
        writer,
        UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        File::open("/dev/zero").unwrap().into(),
        File::open(std::env::current_exe().unwrap()).unwrap().into(),
        File::open(directory).unwrap().into(),
    ];
    for fd in descriptors {
        for error in refusals(fd, 0, 1) {
            assert!(matches!(error, RegionError::NotMemory), "{error}");
        }
    }
}

#[test]
fn memory_that_can_shrink_is_refused() {
    for seals in [SealFlags::empty(), SealFlags::GROW | SealFlags::SEAL] {
        for error in refusals(memfd(4096, seals), 0, 4096) {
            assert!(matches!(error, RegionError::Unsealed), "{error}");
        }
    }
}

#[test]
fn memory_of_huge_pages_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB;
    // Not every system has them; then nobody can send any.
    let Ok(file) = memfd_create("test", flags) else {
        return;
    };
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    for error in refusals(file, 0, 4096) {
        assert!(matches!(error, RegionError::NotMemory), "{error}");
    }
}

#[test]
fn bytes_beyond_the_file_are_refused() {
    let top = u64::MAX - 4095;
    for (offset, len) in [
        (0, 8193),
        (4096, 4097),
        (8192, 1),
        (8192, 0),
        (top, 4096),
        (top, u64::MAX),
        (0, u64::MAX),
    ] {
        for error in refusals(memfd(8192, SealFlags::SHRINK), offset, len) {
            assert!(
                matches!(
                    error,
                    RegionError::TooShort {
                        file_bytes: 8192,
                        ..
                    }
                ),
                "{offset} {len}: {error}"
            );
        }
    }
}

#[test]
fn an_offset_within_a_page_is_refused() {
    for offset in [1, 100, 4095, u64::MAX] {
        for error in refusals(memfd(8192, SealFlags::SHRINK), offset, 1) {
            assert!(matches!(error, RegionError::Misaligned { .. }), "{error}");
        }
    }
}

#[test]
fn memory_that_was_opened_for_reading_is_not_imported_for_writing() {
    use std::os::fd::AsRawFd;
    let region = Region::shared_zeroed(10).unwrap();
    let file = exported(&region.hold());
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let reader = || open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for error in refusals(reader(), 0, 10) {
        assert!(
            matches!(error, RegionError::Os { call: "mmap", .. }),
            "{error}"
        );
    }
    let import = Region::import(reader(), 0, 10, MemoryKind::Shared, false).unwrap();
    assert_eq!(import.as_slice(), [0; 10]);
}

#[test]
fn only_shared_memory_is_imported_as_a_region() {
    for kind in [MemoryKind::Host, MemoryKind::Pinned, MemoryKind::Sim] {
        let file = memfd(4096, SealFlags::SHRINK);
        let error = Region::import(file, 0, 4096, kind, true).unwrap_err();
        assert!(
            matches!(error, RegionError::NotImportable { .. }),
            "{error}"
        );
        assert!(error.to_string().contains(&kind.to_string()), "{error}");
    }
}

#[test]
fn an_import_within_the_process_has_the_same_bytes() {
    for bytes in [0, 1, 4096, 4097] {
        let mut region = Region::shared_zeroed(bytes).unwrap();
        let file = exported(&region.hold());
        let import = Region::import(file, 0, bytes, MemoryKind::Shared, true).unwrap();
        region.as_mut_slice().fill(5);
        assert_eq!(import.as_slice(), region.as_slice());
        assert_eq!(import.kind(), MemoryKind::Shared);
        assert!(import.hold().export().is_none());
    }
}
