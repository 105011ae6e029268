//! Visiting the offsets of a nest of loops.

use super::Loop;

/// Loops that a nest may have.
pub(super) const MOST_LOOPS: usize = 16;

/// Calls `each` with the source and target offset of every turn, the last loop turning fastest.
///
/// The two innermost loops are plain loops around `each`; the others are an odometer, so that nothing recurses
/// and `each` is inlined once, into a caller that may be compiled for more instructions than this.
#[inline(always)]
pub(super) fn nest(loops: &[Loop], mut each: impl FnMut(u64, u64)) {
    const ONE: Loop = Loop {
        extent: 1,
        source: 0,
        target: 0,
    };
    let (outer, middle, inner) = match loops {
        [] => (&[][..], ONE, ONE),
        [inner] => (&[][..], ONE, *inner),
        [outer @ .., middle, inner] => (outer, *middle, *inner),
    };
    let mut turns = [0_u32; MOST_LOOPS];
    let (mut source, mut target) = (0_u64, 0_u64);
    loop {
        for j in 0..u64::from(middle.extent) {
            let (s, t) = (source + j * middle.source, target + j * middle.target);
            for i in 0..u64::from(inner.extent) {
                each(s + i * inner.source, t + i * inner.target);
            }
        }
        let mut at = outer.len();
        loop {
            let Some(next) = at.checked_sub(1) else {
                return;
            };
            at = next;
            let wheel = &outer[at];
            turns[at] += 1;
            source += wheel.source;
            target += wheel.target;
            if turns[at] < wheel.extent {
                break;
            }
            turns[at] = 0;
            source -= wheel.source * u64::from(wheel.extent);
            target -= wheel.target * u64::from(wheel.extent);
        }
    }
}
