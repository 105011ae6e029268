//! Pools on a device: how they get there from host memory, and back.

use std::time::Duration;

use moai_collectives::execute::Pool;
use moai_memory::{Domain, Job, Region, RegionError, Span, Stream, StreamError, Work};
use thiserror::Error;

/// A pool could not be copied to a device, or from one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Memory could not be had.
    #[error(transparent)]
    Memory(#[from] RegionError),
    /// The device failed.
    #[error("cannot copy region {region} of a pool: {cause}")]
    Stream {
        /// Which of the pool's regions.
        region: usize,
        /// Why not.
        #[source]
        cause: StreamError,
    },
}

/// Bytes of one copy: what a buffer of it costs, and large enough that starting it is not what takes time.
const COPY_BYTES: u64 = 16 << 20;

/// A copy of a pool in host memory on a device.
///
/// # Errors
///
/// [`DeviceError`] if the device has no memory, or fails.
///
/// # Panics
///
/// If the processor cannot load from the pool.
pub fn to_device(domain: &dyn Domain, pool: &[Region]) -> Result<Pool, DeviceError> {
    let mut copies = Pool::new();
    for (index, region) in pool.iter().enumerate() {
        let copy = domain.allocate(region.len())?;
        let bytes = region.as_slice();
        carry(domain, &copy, Work::FromHost, |at, buffer, len| {
            buffer.clear();
            buffer.extend_from_slice(&bytes[at as usize..][..len]);
        })
        .map_err(|cause| DeviceError::Stream {
            region: index,
            cause,
        })?;
        copies.push(copy);
    }
    Ok(copies)
}

/// A copy in host memory of a pool wherever it lies.
///
/// # Errors
///
/// [`DeviceError`] if there is no memory, or the device fails.
///
/// # Panics
///
/// If nobody can load from the pool.
pub fn to_host(pool: &[Region]) -> Result<Pool, DeviceError> {
    let mut copies = Pool::new();
    for (index, region) in pool.iter().enumerate() {
        let mut copy = Region::host_zeroed(region.len())?;
        match region.hold().domain() {
            None => copy.as_mut_slice().copy_from_slice(region.as_slice()),
            Some(domain) => {
                let target = copy.as_mut_slice();
                let mut end = 0;
                carry(domain, region, Work::ToHost, |at, buffer, _| {
                    // What the copy before has brought, then what this one is to bring.
                    let (from, len) = (end as usize, (at - end) as usize);
                    target[from..][..len].copy_from_slice(&buffer[..len]);
                    end = at;
                })
                .map_err(|cause| DeviceError::Stream {
                    region: index,
                    cause,
                })?;
            }
        }
        copies.push(copy);
    }
    Ok(copies)
}

/// Copies all of a region, a part at a time; `each` is shown the buffer before each part, with where that starts and how
/// long it is, and after the last.
fn carry(
    domain: &dyn Domain,
    region: &Region,
    work: Work,
    mut each: impl FnMut(u64, &mut Vec<u8>, usize),
) -> Result<(), StreamError> {
    let mut stream = domain.stream()?;
    let span = Span {
        hold: region.hold(),
        offset: 0,
        bytes: 0,
    };
    let mut job = Job {
        name: 0,
        work,
        spans: vec![span],
        buffer: Vec::new(),
    };
    let mut at = 0;
    while at < region.len() {
        let bytes = COPY_BYTES.min(region.len() - at);
        each(at, &mut job.buffer, bytes as usize);
        (job.spans[0].offset, job.spans[0].bytes) = (at, bytes);
        job = run(&mut *stream, job)?;
        at += bytes;
    }
    each(at, &mut job.buffer, 0);
    Ok(())
}

/// Has a stream that does nothing else do a job.
fn run(stream: &mut dyn Stream, mut job: Job) -> Result<Job, StreamError> {
    loop {
        match stream.submit(job) {
            Ok(()) => break,
            Err(back) => job = back,
        }
    }
    loop {
        if let Some(finished) = stream.completed() {
            return finished.outcome.map(|()| finished.job);
        }
        stream.wait(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use moai_memory::sim::{Faults, SimConfig, SimDevice};

    use super::*;

    #[test]
    fn what_goes_to_a_device_comes_back() {
        let device = SimDevice::new(SimConfig::default());
        let pool: Pool = [0, 1, 5000, COPY_BYTES + 3]
            .map(|bytes| (0..bytes).map(|at| ((at * 7) >> 3) as u8).collect())
            .map(Region::from_host)
            .into();
        let copy = to_device(&device, &pool[1..]).unwrap();
        assert!(copy.iter().all(|region| region.host_bytes().is_none()));
        for there in [&copy[..], &pool[1..]] {
            let back = to_host(there).unwrap();
            assert_eq!(back.len(), 3);
            for (back, region) in back.iter().zip(&pool[1..]) {
                assert!(back.as_slice() == region.as_slice());
            }
        }
    }

    #[test]
    fn a_device_that_fails_is_reported() {
        let faults = Faults {
            failed_per_mille: 1000,
            ..Faults::default()
        };
        let device = SimDevice::new(SimConfig {
            faults,
            ..SimConfig::default()
        });
        let pool = [Region::from_host(vec![1; 10])];
        let error = to_device(&device, &pool).unwrap_err().to_string();
        assert_eq!(error, "cannot copy region 0 of a pool: the device failed");
    }
}
