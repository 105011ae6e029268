//! Spans: runs of bytes that are contiguous on both sides of a put or get.

use moai_transport::{Cursor, Lists, Run};

/// Bytes that lie one after another here and there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// Number of the local region.
    pub(crate) region: u32,
    pub(crate) bytes: u32,
    /// From the start of the local region.
    pub(crate) local: u64,
    /// From the start of the remote memory.
    pub(crate) remote: u64,
}

/// A walk over both lists of an operation at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Walk {
    local: Cursor,
    remote: Cursor,
    /// Of the remote piece at hand, what has not been met yet.
    rest: Option<Run>,
}

/// A span is at most so long; a longer piece is several.
const MAX_SPAN_BYTES: u32 = 4 << 20;

impl Walk {
    /// The remote memory of the next span.
    #[inline]
    pub(crate) fn remote(&mut self, remote: &(impl Lists + ?Sized)) -> Option<u32> {
        if self.rest.is_none() {
            self.rest = self.remote.next(remote, MAX_SPAN_BYTES);
        }
        self.rest.map(|rest| rest.region)
    }

    /// The next span of at most `most` bytes, which is not zero, if it is of remote memory `of`.
    #[inline]
    pub(crate) fn next(
        &mut self,
        of: u32,
        local: &(impl Lists + ?Sized),
        remote: &(impl Lists + ?Sized),
        most: u32,
    ) -> Option<Span> {
        if self.remote(remote)? != of {
            return None;
        }
        let rest = self.rest.as_mut()?;
        let run = self.local.next(local, rest.bytes.min(most))?;
        let span = Span {
            region: run.region,
            bytes: run.bytes,
            local: run.offset,
            remote: rest.offset,
        };
        rest.bytes -= run.bytes;
        rest.offset += u64::from(run.bytes);
        if rest.bytes == 0 {
            self.rest = None;
        }
        Some(span)
    }
}

#[cfg(test)]
mod tests {
    use moai_transport::Pieces;

    use super::*;

    #[test]
    fn both_sides_are_met_in_order_wherever_they_are_cut() {
        let pieces = |region, bytes, count, stride, offsets| Pieces {
            region,
            bytes,
            count,
            stride,
            offsets,
        };
        let local = [pieces(0, 7, 3, 10, &[0, 100]), pieces(1, 18, 1, 0, &[5])];
        let remote = [pieces(4, 20, 1, 0, &[64]), pieces(9, 5, 4, 8, &[0, 50])];
        let bytes = |lists: &[Pieces<'_>]| {
            let (mut cursor, mut all) = (Cursor::default(), Vec::new());
            while let Some(run) = cursor.next(lists, 1) {
                all.push((run.region, run.offset));
            }
            all
        };
        let (mut walk, mut met) = (Walk::default(), Vec::new());
        while let Some(of) = walk.remote(&remote[..]) {
            while let Some(span) = walk.next(of, &local[..], &remote[..], 6) {
                for byte in 0..u64::from(span.bytes) {
                    met.push(((span.region, span.local + byte), (of, span.remote + byte)));
                }
            }
        }
        let expected: Vec<_> = bytes(&local).into_iter().zip(bytes(&remote)).collect();
        assert_eq!(met.len(), 60);
        assert_eq!(met, expected);
    }
}
