//! What this machine can do at best: the rates that a transfer is held against.

use std::{
    hint::black_box,
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

/// Each buffer of a copy: larger than any cache of a core, so that memory is measured.
const COPY_BYTES: usize = 64 << 20;
/// One write and one read of the connection; the size of a chunk on the wire.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes of a loopback round: tens of milliseconds, so that slow start and waking up do not count.
const ROUND_BYTES: usize = 64 << 20;
/// Rounds of one measurement at most; at least one is always done.
const MOST_ROUNDS: usize = 15;
/// How long the connection may rest before the measurement gives up.
const STALL: Duration = Duration::from_secs(5);

/// Rates of this machine, in 10⁹ bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// One thread copying between two buffers that no cache holds: bytes copied, not bytes touched.
    pub(crate) memcpy_gb_s: f64,
    /// One plain TCP connection over 127.0.0.1, one thread on each end.
    pub(crate) loopback_gb_s: f64,
}

/// Measures both rates, each the median of several rounds, in about `budget`. A second is enough.
///
/// # Errors
///
/// Whatever opening and using a connection to ourselves fails with, and [`io::ErrorKind::InvalidData`]
/// if bytes arrive that were not sent.
pub(crate) fn measure(budget: Duration) -> io::Result<Bounds> {
    let memcpy_gb_s = memcpy(budget / 2)?;
    let loopback_gb_s = loopback(budget / 2)?;
    Ok(Bounds {
        memcpy_gb_s,
        loopback_gb_s,
    })
}

fn memcpy(budget: Duration) -> io::Result<f64> {
    let start = Instant::now();
    // Written throughout, so that no page is the kernel's shared page of zeros.
    let mut source = vec![0x5a_u8; COPY_BYTES];
    let mut target = vec![0xa5_u8; COPY_BYTES];
    rounds(start + budget, |round| {
        source[round * 4096] = round as u8;
        let start = Instant::now();
        black_box(&mut target[..]).copy_from_slice(black_box(&source));
        let took = start.elapsed();
        black_box(&target);
        check(target[round * 4096] == round as u8 && target[COPY_BYTES - 1] == 0x5a)?;
        Ok(COPY_BYTES as f64 / took.as_nanos().max(1) as f64)
    })
}

fn loopback(budget: Duration) -> io::Result<f64> {
    let deadline = Instant::now() + budget;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut sending = TcpStream::connect(listener.local_addr()?)?;
    let mut receiving = accept(&listener, &sending)?;
    for stream in [&sending, &receiving] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(STALL))?;
        stream.set_write_timeout(Some(STALL))?;
    }
    let mut block = vec![0x5a_u8; BLOCK_BYTES];
    let mut landed = vec![0_u8; BLOCK_BYTES];
    rounds(deadline, |round| {
        thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(&mut receiving, &mut landed, round));
            let start = Instant::now();
            let sent = send(&mut sending, &mut block, round);
            let end = receiver
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the receiving thread panicked")));
            // A sender that failed is why the receiver waited in vain.
            sent?;
            let took = end?.saturating_duration_since(start);
            Ok(ROUND_BYTES as f64 / took.as_nanos().max(1) as f64)
        })
    })
}

/// Accepts our own connection. Whoever else connects to the port is turned away.
fn accept(listener: &TcpListener, ours: &TcpStream) -> io::Result<TcpStream> {
    let expected = ours.local_addr()?;
    loop {
        let (stream, from) = listener.accept()?;
        if from == expected {
            return Ok(stream);
        }
    }
}

/// Sends a round whose blocks begin with their number, so that a lost or doubled one is noticed.
fn send(stream: &mut TcpStream, block: &mut [u8], round: usize) -> io::Result<()> {
    for number in 0..ROUND_BYTES / BLOCK_BYTES {
        block[..8].copy_from_slice(&mark(round, number));
        stream.write_all(block)?;
    }
    Ok(())
}

/// Receives a round; the moment at which it was whole.
fn receive(stream: &mut TcpStream, block: &mut [u8], round: usize) -> io::Result<Instant> {
    for number in 0..ROUND_BYTES / BLOCK_BYTES {
        stream.read_exact(block)?;
        check(block[..8] == mark(round, number) && black_box(&*block)[BLOCK_BYTES - 1] == 0x5a)?;
    }
    Ok(Instant::now())
}

fn mark(round: usize, number: usize) -> [u8; 8] {
    ((round as u64) << 32 | number as u64).to_le_bytes()
}

fn check(equal: bool) -> io::Result<()> {
    if equal {
        return Ok(());
    }
    let text = "measuring the machine's bounds: bytes arrived that were not sent";
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// The median of what rounds give, until the deadline. The first warms up and does not count, unless
/// there is no time for another.
fn rounds(deadline: Instant, mut round: impl FnMut(usize) -> io::Result<f64>) -> io::Result<f64> {
    let warm = round(0)?;
    let mut rates = Vec::with_capacity(MOST_ROUNDS);
    while rates.len() < MOST_ROUNDS && Instant::now() < deadline {
        rates.push(round(rates.len() + 1)?);
    }
    rates.sort_unstable_by(f64::total_cmp);
    Ok(rates.get(rates.len() / 2).copied().unwrap_or(warm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_rates_are_measured_within_reach_of_the_budget() {
        let start = Instant::now();
        let bounds = measure(Duration::from_millis(100)).unwrap();
        // Slow machines finish the round they are in; what counts is that it ends.
        assert!(start.elapsed() < Duration::from_secs(60));
        for rate in [bounds.memcpy_gb_s, bounds.loopback_gb_s] {
            assert!(rate.is_finite() && rate > 0.001, "{bounds:?}");
        }
    }

    #[test]
    fn the_median_leaves_out_the_first_round() {
        let mut given = [99.0, 3.0, 1.0, 2.0].into_iter();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut rates = Vec::new();
        let median = rounds(deadline, |n| {
            let rate = given.next().unwrap_or(2.0);
            rates.push(n);
            Ok(rate)
        });
        assert_eq!(median.unwrap(), 2.0);
        assert_eq!(rates.len(), MOST_ROUNDS + 1);
        let past = Instant::now();
        assert_eq!(rounds(past, |_| Ok(7.0)).unwrap(), 7.0);
    }
}
