//! Lists of pieces drawn at random, and the slow way to carry them out.

use moai_transport::Pieces;

use crate::random::Random;

/// [`Pieces`] that own their offsets.
#[derive(Clone, Debug)]
pub(crate) struct List {
    pub(crate) region: u32,
    pub(crate) bytes: u32,
    pub(crate) count: u32,
    pub(crate) stride: u64,
    pub(crate) offsets: Vec<u64>,
}

impl List {
    /// One piece.
    pub(crate) fn piece(region: u32, offset: u64, bytes: u32) -> Self {
        Self {
            region,
            bytes,
            count: 1,
            stride: 0,
            offsets: vec![offset],
        }
    }

    pub(crate) fn pieces(&self) -> Pieces<'_> {
        Pieces {
            region: self.region,
            bytes: self.bytes,
            count: self.count,
            stride: self.stride,
            offsets: &self.offsets,
        }
    }
}

pub(crate) fn pieces(lists: &[List]) -> Vec<Pieces<'_>> {
    lists.iter().map(List::pieces).collect()
}

/// Lists of `total` bytes that do not overlap, with gaps between pieces; `regions` are numbers and lengths.
pub(crate) fn draw(random: &mut Random, regions: &[(u32, u64)], total: u64) -> Vec<List> {
    let mut ends = vec![0_u64; regions.len()];
    let mut lists = Vec::new();
    let mut left = total;
    while left > 0 {
        let at = random.below(regions.len() as u64) as usize;
        let (region, len) = regions[at];
        let room = len - ends[at];
        let bytes = random.size(left.min(20_000));
        let most = left / bytes;
        let count = random.size(most.min(64));
        let places = random.size((most / count).min(40));
        let gap = [0, 1, random.size(300)][random.below(3) as usize];
        // Either one behind the other, or each between the pieces of the one before.
        let interleaved = count > 1 && random.once_in(3);
        let stride = if interleaved {
            places * bytes + gap
        } else {
            bytes + gap
        };
        let reach = stride * (count - 1) + bytes;
        let step = if interleaved { bytes } else { reach + gap };
        let whole = step * (places - 1) + reach + gap;
        if whole > room {
            // As much as fits, in one piece.
            let at = (0..regions.len())
                .max_by_key(|&at| regions[at].1 - ends[at])
                .unwrap();
            let bytes = left.min(regions[at].1 - ends[at]).min(70_000);
            assert!(bytes > 0, "the regions are too small for {total} bytes");
            lists.push(List::piece(regions[at].0, ends[at], bytes as u32));
            ends[at] += bytes;
            left -= bytes;
            continue;
        }
        let start = ends[at] + gap;
        let mut offsets: Vec<u64> = (0..places).map(|place| start + place * step).collect();
        random.shuffle(&mut offsets);
        lists.push(List {
            region,
            bytes: bytes as u32,
            count: count as u32,
            stride,
            offsets,
        });
        ends[at] += whole;
        left -= bytes * count * places;
    }
    random.shuffle(&mut lists);
    lists
}

/// Region and offset of every byte of `lists`, in order.
pub(crate) fn every_byte(lists: &[List]) -> impl Iterator<Item = (usize, usize)> + '_ {
    lists.iter().flat_map(|list| {
        list.offsets.iter().flat_map(move |offset| {
            (0..u64::from(list.count)).flat_map(move |nth| {
                let start = offset + nth * list.stride;
                (start..start + u64::from(list.bytes)).map(|at| (list.region as usize, at as usize))
            })
        })
    })
}

/// Byte by byte, what a transfer does: regions are by their number in the lists.
pub(crate) fn carry_out(
    (from, source): (&[Vec<u8>], &[List]),
    (to, target): (&mut [Vec<u8>], &[List]),
) {
    let mut bytes = 0;
    for ((from_region, from_at), (region, at)) in every_byte(source).zip(every_byte(target)) {
        to[region][at] = from[from_region][from_at];
        bytes += 1;
    }
    assert_eq!(bytes, every_byte(source).count());
    assert_eq!(bytes, every_byte(target).count());
}

/// The slow way holds lists against providers; this holds the lists against what they promise.
pub(crate) fn drawn_lists_are_what_they_say(seed: u64) {
    let mut random = Random(seed);
    let regions = [(0, 40_000), (1, 100), (2, 70_000)];
    for _ in 0..300 {
        let total = random.size(60_000);
        let lists = draw(&mut random, &regions, total);
        let each = lists.iter().map(|list| {
            let len = regions[list.region as usize].1;
            list.pieces().check(len).expect("inside of its region")
        });
        assert_eq!(each.sum::<u64>(), total);
        let mut bytes: Vec<_> = every_byte(&lists).collect();
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len() as u64, total, "pieces overlap: {lists:?}");
    }
}
