//! What is on its way into one socket: bytes that were gathered, and runs of regions between them.

use std::io::{self, IoSlice};

use moai_memory::{Job, Region};
use moai_transport::wire::{HEADER_BYTES, Header};
use moai_transport::{Run, Stats};

use crate::limits::{FORESEEN_PIECE_BYTES, VECTORS};
use crate::operations::Ground;
use crate::secure::Marks;
use crate::stream::Sink;
use crate::vectored::prefetch_far;

/// Whole frames that leave in one order.
///
/// Runs of regions are kept by number and resolved at each write, since regions are lent for one call at a time.
#[derive(Debug, Default)]
pub(crate) struct Chunk {
    /// Headers, lists, and payload that was gathered.
    pub(crate) bytes: Vec<u8>,
    parts: Vec<Part>,
    /// What was copied from device memory.
    copied: Option<Job>,
    /// First part that is not gone, and how much of it is.
    at: usize,
    gone: usize,
    /// Bytes of `bytes` before the first part that is not gone.
    start: usize,
    /// Bytes of `bytes` that are in parts.
    covered: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    /// The next so many of the gathered bytes.
    Gathered(usize),
    /// So many bytes that were copied from device memory.
    Copied(usize),
    /// Bytes of a region.
    Lent {
        run: Run,
        ground: Ground,
        whose: Whose,
    },
}

/// On whose behalf bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// An operation of ours, by index.
    Ours(u32),
    /// A peer's get from a registration, by slot.
    Registered(u32),
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// Everything has gone.
    All,
    /// The socket takes no more.
    Blocked,
    /// What comes next lies in regions, and none are lent.
    NeedsMemory,
    /// What comes next lies in a region that is no longer what it was.
    NotLent(Whose),
}

/// Stands in for bytes that are no longer there.
static FILLER: [u8; 4096] = [0; 4096];

impl Chunk {
    /// Adds `run` of a region that is lent as `ground`, behind everything gathered so far.
    pub(crate) fn lend(&mut self, run: Run, ground: Ground, whose: Whose) {
        self.close();
        self.parts.push(Part::Lent { run, ground, whose });
    }

    /// Adds what a job has copied from device memory, behind everything gathered so far. Once for a chunk.
    pub(crate) fn append_copied(&mut self, job: Job) {
        self.close();
        self.parts.push(Part::Copied(job.buffer.len()));
        self.copied = Some(job);
    }

    /// Takes the job back.
    pub(crate) fn take_copied(&mut self) -> Option<Job> {
        self.copied.take()
    }

    /// Writes a header where room was left for it.
    pub(crate) fn write_head(&mut self, start: usize, header: Header) {
        self.bytes[start..start + HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// Counts what was gathered as a part. Called when the chunk is complete.
    pub(crate) fn close(&mut self) {
        let gathered = self.bytes.len() - self.covered;
        if gathered > 0 {
            self.covered = self.bytes.len();
            if let Some(Part::Gathered(bytes)) = self.parts.last_mut() {
                *bytes += gathered;
            } else {
                self.parts.push(Part::Gathered(gathered));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.parts.len()
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.copied = None;
        self.at = 0;
        self.gone = 0;
        self.start = 0;
        self.covered = 0;
    }

    /// Whether bytes of a registration are still to be read.
    pub(crate) fn reads_from(&self, slot: u32) -> bool {
        self.parts[self.at..].iter().any(
            |part| matches!(part, Part::Lent { whose: Whose::Registered(of), .. } if *of == slot),
        )
    }

    /// Whether some of it is to be read from regions.
    pub(crate) fn is_lent(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part, Part::Lent { .. }))
    }

    /// Puts zeros in the place of what can no longer be read, where `is_gone` says so.
    pub(crate) fn blank(&mut self, is_gone: impl Fn(Whose) -> bool) {
        for part in &mut self.parts[self.at..] {
            if let Part::Lent { run, whose, .. } = part
                && is_gone(*whose)
            {
                run.region = u32::MAX;
            }
        }
    }

    /// Writes until everything has gone or the socket takes no more.
    pub(crate) fn write(
        &mut self,
        socket: &mut impl Sink,
        memory: Option<&[Region]>,
        stats: &mut Stats,
    ) -> io::Result<Wrote> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); VECTORS];
            let mut marks = Marks::default();
            let count = match self.slices(memory, &mut slices, &mut marks) {
                Ok(count) => count,
                Err(why) => return Ok(why),
            };
            let mut asked = 0;
            for slice in &slices[..count] {
                asked += slice.len();
                if slice.len() <= FORESEEN_PIECE_BYTES {
                    prefetch_far(slice);
                }
            }
            stats.writes += 1;
            match socket.send(&slices[..count], &marks) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    stats.bytes_out += bytes as u64;
                    self.advance(bytes);
                    // A short write says that the buffer is full. The system reports when it is not.
                    if bytes < asked {
                        return Ok(Wrote::Blocked);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Wrote::Blocked);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Wrote::All)
    }

    fn slices<'a>(
        &'a self,
        memory: Option<&'a [Region]>,
        slices: &mut [IoSlice<'a>],
        marks: &mut Marks,
    ) -> Result<usize, Wrote> {
        let (mut start, mut gone, mut count) = (self.start, self.gone, 0);
        for part in self.parts[self.at..].iter().take(slices.len()) {
            let bytes = match *part {
                Part::Gathered(bytes) => {
                    let gathered = &self.bytes[start..start + bytes];
                    start += bytes;
                    &gathered[gone..]
                }
                Part::Copied(_) => {
                    let copied = self.copied.as_ref().map_or(&[][..], |job| &job.buffer);
                    &copied[gone..]
                }
                Part::Lent { run, .. } if run.region == u32::MAX => {
                    let left = run.bytes as usize - gone;
                    marks.set(count);
                    slices[count] = IoSlice::new(&FILLER[..left.min(FILLER.len())]);
                    // Long runs take several writes.
                    return Ok(count + 1);
                }
                Part::Lent { run, ground, whose } => {
                    let stop = match memory {
                        None => Some(Wrote::NeedsMemory),
                        Some(memory) if !ground.is_lent(memory) => Some(Wrote::NotLent(whose)),
                        Some(_) => None,
                    };
                    match (stop, memory) {
                        (None, Some(memory)) => {
                            let region = memory[run.region as usize].as_slice();
                            &region[run.offset as usize..][..run.bytes as usize][gone..]
                        }
                        (stop, _) if count == 0 => return Err(stop.unwrap_or(Wrote::NeedsMemory)),
                        _ => return Ok(count),
                    }
                }
            };
            gone = 0;
            if !matches!(part, Part::Gathered(_)) {
                marks.set(count);
            }
            slices[count] = IoSlice::new(bytes);
            count += 1;
        }
        Ok(count)
    }

    fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let whole = match self.parts[self.at] {
                Part::Gathered(whole) | Part::Copied(whole) => whole,
                Part::Lent { run, .. } => run.bytes as usize,
            };
            let left = whole - self.gone;
            if bytes < left {
                self.gone += bytes;
                return;
            }
            bytes -= left;
            if matches!(self.parts[self.at], Part::Gathered(_)) {
                self.start += whole;
            }
            self.gone = 0;
            self.at += 1;
        }
    }
}
