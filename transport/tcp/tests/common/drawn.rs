//! Lists of pieces drawn at random.

use moai_transport::Pieces;

use super::Random;

/// Lists of pieces that do not overlap, of `total` bytes.
pub(crate) struct Drawn(Vec<(u32, u32, u32, u64, Vec<u64>)>);

impl Drawn {
    /// Draws strided groups one after the other through the regions until `total` is reached exactly.
    pub(crate) fn new(random: &mut Random, sizes: &[usize], total: u64, largest: u32) -> Self {
        let mut lists = Vec::new();
        let mut ends = vec![0_u64; sizes.len()];
        let mut left = total;
        while left > 0 {
            let region = random.below(sizes.len() as u64) as usize;
            let bytes = u64::from(random.size(largest)).min(left);
            let gap = random.below(3) * random.below(300);
            let count = (1 + random.below(20)).min(left / bytes).max(1);
            let stride = bytes + gap;
            let most_offsets = (left / (bytes * count)).clamp(1, 10);
            let room = sizes[region] as u64 - ends[region];
            let reach = stride * count;
            let offsets: Vec<u64> = (0..(1 + random.below(most_offsets)).min(room / reach))
                .map(|at| ends[region] + at * reach)
                .collect();
            if offsets.is_empty() {
                if bytes == 1 && count == 1 {
                    ends[region] = 0;
                }
                continue;
            }
            ends[region] += reach * offsets.len() as u64;
            left -= bytes * count * offsets.len() as u64;
            let mut offsets = offsets;
            if random.below(2) == 0 {
                offsets.reverse();
            }
            lists.push((region as u32, bytes as u32, count as u32, stride, offsets));
        }
        Self(lists)
    }

    pub(crate) fn pieces<'a>(&'a self, names: &'a [u32]) -> Vec<Pieces<'a>> {
        let pieces = self
            .0
            .iter()
            .map(|(region, bytes, count, stride, offsets)| Pieces {
                region: names[*region as usize],
                bytes: *bytes,
                count: *count,
                stride: *stride,
                offsets,
            });
        pieces.collect()
    }

    /// Region and offset of every byte.
    pub(crate) fn bytes(&self) -> Vec<(usize, usize)> {
        let mut all = Vec::new();
        for (region, bytes, count, stride, offsets) in &self.0 {
            for offset in offsets {
                for index in 0..u64::from(*count) {
                    let start = (offset + index * stride) as usize;
                    all.extend((start..start + *bytes as usize).map(|at| (*region as usize, at)));
                }
            }
        }
        all
    }
}
