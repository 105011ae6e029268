//! From the pages of one pool into the pages of another: the program, the memcpy beside it, and the check.

use std::{hint::black_box, path::PathBuf, sync::Arc, thread};

use moai_fabric::{
    memory::Region,
    translate::{
        format::Counts,
        program::{Conversions, Program, Step},
        reference,
    },
};

use crate::{
    args::Check,
    cases::{Case, Shape},
    dump,
    failure::Failure,
    pool::{Pool, place},
    random::Random,
    timing::Share,
};

/// How much work a case is, and how it is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) shape: Shape,
    /// Tokens of one thread.
    pub(crate) tokens: u32,
    pub(crate) seed: u64,
    pub(crate) check: Check,
    /// Where pools are written.
    pub(crate) dump: Option<PathBuf>,
}

impl Work {
    /// As much of the shape as fits in `bytes`, read and written: all layers if the tokens of each still
    /// are many, as those of a prompt are.
    pub(crate) fn new(case: &Case, bytes: u64, threads: u32) -> Result<Self, String> {
        let mut shape = case.shape();
        let step = crate::cases::MOST_PAGE
            .min((case.layouts.iter().map(|layout| layout.page).max()).unwrap_or(1));
        let token_bytes = row_bytes(case)? * u64::from(shape.heads * shape.components);
        let fits = |layers: u32| bytes / u64::from(threads * layers) / token_bytes;
        while shape.layers > 1 && fits(shape.layers) < u64::from(FEW_TOKENS) {
            shape.layers = shape.layers.div_ceil(2);
        }
        let steps = (fits(shape.layers) / u64::from(step)).max(1);
        Ok(Self {
            shape,
            tokens: steps as u32 * step,
            seed: 1,
            check: Check::Sample,
            dump: None,
        })
    }

    /// Rows of one thread.
    pub(crate) fn rows(&self) -> u64 {
        let Shape {
            layers,
            components,
            heads,
            ..
        } = self.shape;
        u64::from(layers * components * heads) * u64::from(self.tokens)
    }

    /// Randomness of one thread.
    pub(crate) fn random(&self, thread: u32) -> Random {
        Random(Random(self.seed ^ u64::from(thread) << 32).next())
    }
}

/// Tokens of a layer below which layers are left out instead.
const FEW_TOKENS: u32 = 256;

/// Bytes read and written for each row, params included.
pub(crate) fn row_bytes(case: &Case) -> Result<u64, String> {
    let conversion = case.conversion()?;
    let source = conversion.source_row_bytes() + conversion.source_params_bytes();
    let target = conversion.target_row_bytes() + conversion.target_params_bytes();
    Ok((source + target) as u64)
}

/// What a thread found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// Rows compared with the reference.
    pub(crate) rows_checked: u64,
    /// What one pass could not keep.
    pub(crate) counts: Counts,
    /// Threads that worked on it.
    pub(crate) threads: u32,
}

/// The passes of a [`Job`], in the order they take turns.
pub(crate) const PASSES: usize = 2;

/// A request between two pools, divided among threads.
pub(crate) struct Job {
    case: Case,
    work: Work,
    threads: u32,
    source: Pool,
    target: Pool,
    programs: Vec<Program>,
    conversions: Conversions,
    copied: [Vec<u8>; 2],
    counts: Counts,
}

impl Job {
    /// Pools filled and programs compiled; nothing translated yet.
    pub(crate) fn new(case: &Case, work: &Work, threads: u32) -> Result<Self, String> {
        let shape = work.shape;
        let mut random = work.random(0);
        let [from, to] = &case.layouts;
        let [a, b] = &case.formats;
        let mut source = Pool::new(from, a, shape, work.tokens, &mut random)?;
        let mut target = Pool::new(to, b, shape, work.tokens, &mut random)?;
        source.fill(&mut random)?;
        target.poison();
        let conversion = case.conversion()?;
        // Boxes of a layer may be small; what counts is all that is written.
        let written: u64 = target.regions.iter().map(Region::len).sum();
        let sides = source.components.iter().zip(&target.components);
        let programs = sides
            .map(|(a, b)| {
                Program::new(a.side(), b.side(), shape.heads, shape.dim, &conversion)
                    .as_part_of(written)
            })
            .collect();
        // What is moved is read once and written once.
        let half = (work.rows() * row_bytes(case)?).div_ceil(2) as usize;
        Ok(Self {
            case: case.clone(),
            work: work.clone(),
            threads,
            source,
            target,
            programs,
            conversions: Conversions::All(Arc::new(conversion)),
            copied: [vec![1; half], vec![2; half]],
            counts: Counts::default(),
        })
    }

    fn run(&mut self) {
        self.counts = Counts::default();
        let layers = 0..self.work.shape.layers;
        if self.threads == 1 {
            // Layer by layer, as prefill makes them.
            for layer in layers {
                for program in &mut self.programs {
                    self.counts += program.run(
                        &self.conversions,
                        self.work.tokens,
                        place(layer, &self.source.pages),
                        place(layer, &self.target.pages),
                        self.source.regions.as_slice(),
                        self.target.regions.as_mut_slice(),
                    );
                }
            }
            return;
        }
        let steps = steps(
            &self.work,
            &self.conversions,
            [&self.source.pages, &self.target.pages],
        );
        for program in &mut self.programs {
            self.counts += program.run_on(
                self.threads,
                self.work.tokens,
                &steps,
                self.source.regions.as_slice(),
                self.target.regions.as_mut_slice(),
            );
        }
    }

    /// Small requests are not divided as far as they may be.
    fn threads_used(&self) -> u32 {
        let steps = steps(
            &self.work,
            &self.conversions,
            [&self.source.pages, &self.target.pages],
        );
        let used = |program: &Program| program.threads(self.threads, self.work.tokens, &steps);
        self.programs.iter().map(used).min().unwrap_or(1)
    }

    /// Compares rows of the target with the reference. How many were.
    fn check(&self) -> Result<u64, String> {
        let Shape {
            layers, heads, dim, ..
        } = self.work.shape;
        let [a, b] = &self.case.formats;
        let conversion = self.conversions.any();
        let [mut row, mut params] = [
            conversion.source_row_bytes(),
            conversion.source_params_bytes(),
        ]
        .map(zeros);
        let made = [
            conversion.target_row_bytes(),
            conversion.target_params_bytes(),
        ];
        let [mut expected, mut expected_params] = made.map(zeros);
        let [mut found, mut found_params] = made.map(zeros);
        let parts = self.source.components.iter().zip(&self.target.components);
        let mut checked = 0;
        for (part, (from, to)) in parts.enumerate() {
            let (from, to) = (from.paged(), to.paged());
            for (layer, token, head) in sample(self.work.check, [layers, self.work.tokens, heads]) {
                let (regions, there) = (self.source.regions.as_slice(), &self.source.pages);
                let there = place(layer, there);
                from.read(regions, there, token, head, &mut row, &mut params);
                let (expected, expected_params) = (&mut expected, &mut expected_params);
                reference::convert_row(
                    &a.row,
                    &b.row,
                    dim,
                    &row,
                    &params,
                    expected,
                    expected_params,
                );
                let (regions, there) = (self.target.regions.as_slice(), &self.target.pages);
                let there = place(layer, there);
                to.read(regions, there, token, head, &mut found, &mut found_params);
                if found != *expected || found_params != *expected_params {
                    return Err(format!(
                        "{}, {}: component {part}, layer {layer}, token {token}, head {head} is {found:02x?} \
                         with {found_params:02x?}, and by the reference {expected:02x?} with {expected_params:02x?}",
                        self.case.layout_label(),
                        self.case.format_label()
                    ));
                }
                checked += 1;
            }
        }
        Ok(checked)
    }
}

/// All layers of a request.
fn steps<'a>(
    work: &Work,
    conversions: &'a Conversions,
    [source, target]: [&'a [u32]; 2],
) -> Vec<Step<'a>> {
    (0..work.shape.layers)
        .map(|layer| Step {
            conversions,
            from: place(layer, source),
            to: place(layer, target),
        })
        .collect()
}

impl Share for Job {
    type Outcome = Found;

    fn pass(&mut self, pass: usize) {
        match pass {
            0 => self.run(),
            _ => copy(self.threads, &mut self.copied),
        }
    }

    fn finish(&mut self) -> Result<Found, Failure> {
        // Once more on a target that holds nothing, with programs that have been used.
        self.target.poison();
        self.run();
        let rows_checked = self.check().map_err(Failure::Wrong)?;
        if let Some(folder) = &self.work.dump {
            dump::write(folder, &self.case, &self.work, [&self.source, &self.target])
                .map_err(Failure::Input)?;
        }
        Ok(Found {
            rows_checked,
            counts: self.counts,
            threads: self.threads_used(),
        })
    }
}

fn zeros(bytes: usize) -> Vec<u8> {
    vec![0; bytes]
}

/// The bound: as many bytes, read once and written once, by as many threads.
fn copy(threads: u32, [from, to]: &mut [Vec<u8>; 2]) {
    let part = from.len().div_ceil(threads as usize).max(1);
    thread::scope(|scope| {
        let mut parts = from.chunks(part).zip(to.chunks_mut(part));
        let first = parts.next();
        for (from, to) in parts {
            scope.spawn(|| black_box(to).copy_from_slice(black_box(from)));
        }
        if let Some((from, to)) = first {
            black_box(to).copy_from_slice(black_box(from));
        }
    });
}

/// Layer, token and head of the rows that are compared.
pub(crate) fn sample(
    check: Check,
    [layers, tokens, heads]: [u32; 3],
) -> impl Iterator<Item = (u32, u32, u32)> {
    let rows = u64::from(layers) * u64::from(tokens) * u64::from(heads);
    let step = match check {
        Check::Full => 1,
        // Odd and no multiple of a page or a head count, so that every slot and head has its turn.
        Check::Sample => (rows / SAMPLED_ROWS).max(1) | 1,
    };
    // The last row, too: what is forgotten is the rest behind whole pages and tiles.
    let picked = (0..rows).step_by(step as usize).chain([rows - 1]);
    picked.map(move |row| {
        let token = row / u64::from(heads);
        (
            (token / u64::from(tokens)) as u32,
            (token % u64::from(tokens)) as u32,
            (row % u64::from(heads)) as u32,
        )
    })
}

/// Rows compared in each component, about.
const SAMPLED_ROWS: u64 = 2048;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn case(layouts: [&str; 2], formats: [&str; 2]) -> Case {
        Case {
            layouts: layouts.map(|name| name.parse().unwrap()),
            formats: formats.map(|name| name.parse().unwrap()),
        }
    }

    fn job(case: &Case) -> Job {
        let mut work = Work::new(case, 1 << 18, 1).unwrap();
        work.check = Check::Full;
        Job::new(case, &work, 0).unwrap()
    }

    #[test]
    fn work_fits_and_keeps_prompts_long() {
        let case = case(["nhd", "hnd@64"], ["bf16", "e4m3fn@tensor"]);
        // 16 rows of 256 and 128 bytes for each token and layer.
        for (mib, threads, layers, tokens) in
            [(384, 1, 32, 2048), (24, 1, 16, 256), (24, 2, 8, 256)]
        {
            let work = Work::new(&case, mib << 20, threads).unwrap();
            assert_eq!((work.shape.layers, work.tokens), (layers, tokens), "{mib}");
            assert!(work.rows() * u64::from(threads) * row_bytes(&case).unwrap() <= mib << 20);
        }
        // A page is the least.
        assert_eq!(Work::new(&case, 1, 1).unwrap().tokens, 64);
    }

    #[test]
    fn a_sample_meets_every_layer_slot_and_head_and_the_last_row() {
        let rows: Vec<_> = sample(Check::Sample, [32, 1024, 8]).collect();
        assert!((2000..2100).contains(&rows.len()), "{}", rows.len());
        let all = |pick: fn(&(u32, u32, u32)) -> u32| {
            rows.iter().map(pick).collect::<BTreeSet<_>>().len()
        };
        assert_eq!([all(|r| r.0), all(|r| r.1 % 16), all(|r| r.2)], [32, 16, 8]);
        assert_eq!(rows.last(), Some(&(31, 1023, 7)));
        assert_eq!(
            sample(Check::Full, [2, 3, 4])
                .collect::<BTreeSet<_>>()
                .len(),
            24
        );
    }

    #[test]
    fn every_row_is_right_and_a_wrong_bit_is_noticed() {
        for (layouts, formats) in [
            (["nhd", "x-packed"], ["bf16", "e4m3fnuz@tensor"]),
            (["vllm/flash_attn", "sglang/mha@64"], ["bf16", "bf16"]),
            (["trtllm", "llama.cpp@1"], ["q8_0", "int8@token_head"]),
            (["mla@64", "nhd"], ["bf16", "fp8_ds_mla"]),
            (["hnd", "nhd@64"], ["mxfp4", "mxfp8_e4m3.floor"]),
            (["nhd", "hnd"], ["nvfp4", "nvfp4"]),
            (["nhd", "nhd"], ["iq4_nl", "dsv4_fp8"]),
        ] {
            let mut job = job(&case(layouts, formats));
            let found = job.finish().unwrap();
            // The last row is looked at twice.
            let components = job.target.components.len() as u64;
            assert_eq!(found.rows_checked, job.work.rows() + components);
            let last = job.target.regions.len() - 1;
            for region in [0, last] {
                let bytes = job.target.regions[region].as_mut_slice();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                let wrong = job.check().unwrap_err();
                assert!(wrong.contains("by the reference"), "{wrong}");
                job.target.regions[region].as_mut_slice()[middle] ^= 1;
            }
            job.check().unwrap();
        }
    }
}
