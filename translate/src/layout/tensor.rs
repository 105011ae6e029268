//! The layout of a tensor whose shape and strides are at hand.

use std::{collections::BTreeMap, ops::Range};

use thiserror::Error;

use super::{Axis, Extents, Layout, LayoutError, Notation, Placed, Split, Word};

/// A tensor as a framework gives it: a label, a size and a stride for each dimension, and an offset.
///
/// This is what a connector has in hand when it registers a cache. [`place`](Self::place) turns it into
/// the form that descriptions hold, [`layout`](Self::layout) into addresses.
///
/// # Labels
///
/// A label is a word of the notation: an axis (`page`), or one half of a split axis (`dim/8`, `dim%8`).
/// What holds more than one component is cut first, as one would cut the tensor:
/// [`narrow`](Self::narrow) keeps a range of a dimension, [`select`](Self::select) one index of it. Axes
/// that no dimension stands for have one index, or one tensor for each index (`place`'s `regions`).
///
/// # Units
///
/// Strides and offset in elements, as `torch.Tensor.stride()` and `storage_offset()` give them
/// ([`elements`](Self::elements)), or in bytes, as DLPack-less callers and numpy do
/// ([`bytes`](Self::bytes)).
///
/// # Example
///
/// vLLM 0.32 hands connectors a view `[pages, heads, slots, 2 · dim]` of each layer, whatever the physical
/// order; here that is `LBNHC`, a token's heads side by side, with K and V of a head packed in one cell:
///
/// ```
/// use moai_translate::layout::{Axis, Extents, Tensor};
///
/// let (pages, heads, slots, dim) = (10, 8, 16, 128);
/// let view = Tensor::elements(
///     &["page", "head", "slot", "dim"],
///     &[pages, heads, slots, 2 * dim],
///     &[16 * 8 * 256, 256, 8 * 256, 1],
///     0,
///     2,
/// )?;
/// let key = view.narrow("dim", 0..dim)?;
/// let value = view.narrow("dim", dim..2 * dim)?;
///
/// // What goes into the description: one region for each layer.
/// let placed = value.place(&[Axis::Layer])?;
/// assert_eq!(placed.notation.to_string(), "[layer] page slot head dim");
/// assert_eq!(placed.offset_bytes, 256);
/// assert_eq!(placed.strides_bytes["slot"], 8 * 512);
///
/// // Addresses, if the cache is what the caller says it is.
/// let shape = Extents { layer: 32, part: 1, page: 10, head: 8, slot: 16, dim: 128 };
/// let layout = key.layout(&[Axis::Layer], shape)?;
/// assert_eq!(layout.address(3, 2, 1, 5, 0).byte, 2 * 65536 + 5 * 4096 + 512);
///
/// let wrong = key.layout(&[Axis::Layer], Extents { slot: 32, ..shape }).unwrap_err();
/// assert_eq!(wrong.to_string(), "shape of `slot` is 16, but the extent is 32; both must be equal");
/// # Ok::<(), moai_translate::layout::TensorError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dims: Vec<Dim>,
    offset_bytes: u64,
    unit_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Dim {
    word: Word,
    size: u64,
    /// Meaningless where the size is 1.
    stride_bytes: u64,
}

/// A tensor is no layout.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorError {
    /// There is not one label, size and stride for each dimension.
    #[error("{labels} labels, {sizes} sizes and {strides} strides; every dimension needs one each")]
    Dimensions {
        /// Labels given.
        labels: usize,
        /// Sizes given.
        sizes: usize,
        /// Strides given.
        strides: usize,
    },
    /// A label is no word of the notation, or stands twice.
    #[error("label `{label}`: {problem}")]
    Label {
        /// The label.
        label: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A dimension has no index.
    #[error("shape of `{label}` is 0; every dimension needs at least 1")]
    Empty {
        /// The dimension.
        label: String,
    },
    /// Indices of a dimension lie on one another, or run backwards.
    #[error(
        "stride of `{label}` is {stride} with a shape of {size}; a dimension of more than one index needs a positive stride (no expanded or flipped view)"
    )]
    Stride {
        /// The dimension.
        label: String,
        /// Its stride, as given.
        stride: i64,
        /// Its size.
        size: u64,
    },
    /// A negative offset.
    #[error("offset is {offset}; it must not be negative")]
    Offset {
        /// The offset, as given.
        offset: i64,
    },
    /// Elements do not lie on multiples of their size.
    #[error("{field} is {bytes} bytes, which is no multiple of the element's {unit_bytes}")]
    Misaligned {
        /// `offset`, or `stride of` a dimension.
        field: String,
        /// What was given.
        bytes: u64,
        /// Bytes of an element.
        unit_bytes: u32,
    },
    /// A range or index is not within a dimension.
    #[error("{start}..{end} is not a range within `{label}`, whose shape is {size}")]
    Range {
        /// The dimension.
        label: String,
        /// First index.
        start: u64,
        /// Past the last.
        end: u64,
        /// Size of the dimension.
        size: u64,
    },
    /// The inner half of a split has another size than it says.
    #[error(
        "shape of `{label}` is {size}; the inner half of a split by {split} has {split} indices"
    )]
    Inner {
        /// The dimension.
        label: String,
        /// Its size.
        size: u64,
        /// What its label says.
        split: u32,
    },
    /// The tensor is not as large as the cache.
    #[error("shape of `{axis}` is {size}, but the extent is {extent}; both must be equal")]
    Shape {
        /// The axis.
        axis: Axis,
        /// Size of the tensor along the axis; 1 where no dimension is labelled so.
        size: u64,
        /// What the caller expects.
        extent: u32,
    },
    /// A number does not fit.
    #[error("{field} of {value} is more than {most}")]
    TooLarge {
        /// What is too large.
        field: String,
        /// Its value, saturated.
        value: u64,
        /// What fits.
        most: u64,
    },
    /// The dimensions overlap.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

type Checked<T> = Result<T, TensorError>;

impl Tensor {
    /// A tensor whose strides and offset count elements of `unit_bytes`.
    ///
    /// # Errors
    ///
    /// Whatever makes a label, size, stride or offset meaningless by itself; see [`TensorError`].
    pub fn elements(
        labels: &[&str],
        shape: &[u64],
        strides: &[i64],
        offset: i64,
        unit_bytes: u32,
    ) -> Checked<Self> {
        Self::new(labels, shape, strides, offset, unit_bytes, unit_bytes)
    }

    /// A tensor of elements of `unit_bytes` whose strides and offset count bytes.
    ///
    /// # Errors
    ///
    /// As [`elements`](Self::elements), and [`TensorError::Misaligned`].
    pub fn bytes(
        labels: &[&str],
        shape: &[u64],
        strides: &[i64],
        offset: i64,
        unit_bytes: u32,
    ) -> Checked<Self> {
        Self::new(labels, shape, strides, offset, unit_bytes, 1)
    }

    fn new(
        labels: &[&str],
        shape: &[u64],
        strides: &[i64],
        offset: i64,
        unit_bytes: u32,
        step_bytes: u32,
    ) -> Checked<Self> {
        if labels.len() != shape.len() || labels.len() != strides.len() {
            return Err(TensorError::Dimensions {
                labels: labels.len(),
                sizes: shape.len(),
                strides: strides.len(),
            });
        }
        if unit_bytes == 0 {
            return Err(TensorError::Empty {
                label: "element".into(),
            });
        }
        let in_bytes = |field: String, steps: u64| {
            let bytes =
                steps
                    .checked_mul(u64::from(step_bytes))
                    .ok_or_else(|| TensorError::TooLarge {
                        field: field.clone(),
                        value: steps,
                        most: u64::MAX / u64::from(step_bytes),
                    })?;
            match bytes.is_multiple_of(u64::from(unit_bytes)) {
                true => Ok(bytes),
                false => Err(TensorError::Misaligned {
                    field,
                    bytes,
                    unit_bytes,
                }),
            }
        };
        let mut dims: Vec<Dim> = Vec::new();
        for ((&label, &size), &stride) in labels.iter().zip(shape).zip(strides) {
            let word = word(label)?;
            if dims.iter().any(|dim| dim.word == word) {
                return Err(TensorError::Label {
                    label: label.to_owned(),
                    problem: "stands here a second time".into(),
                });
            }
            if size == 0 {
                let label = label.to_owned();
                return Err(TensorError::Empty { label });
            }
            if let Split::Inner(n) = word.split
                && size != u64::from(n.get())
            {
                return Err(TensorError::Inner {
                    label: label.to_owned(),
                    size,
                    split: n.get(),
                });
            }
            let stride_bytes = match u64::try_from(stride) {
                _ if size == 1 => 0,
                Ok(steps) if steps > 0 => in_bytes(format!("stride of `{label}`"), steps)?,
                _ => {
                    return Err(TensorError::Stride {
                        label: label.to_owned(),
                        stride,
                        size,
                    });
                }
            };
            dims.push(Dim {
                word,
                size,
                stride_bytes,
            });
        }
        let steps = u64::try_from(offset).map_err(|_| TensorError::Offset { offset })?;
        Ok(Self {
            dims,
            offset_bytes: in_bytes("offset".into(), steps)?,
            unit_bytes,
        })
    }

    /// The part of the tensor within `range` of the dimension called `label`.
    ///
    /// # Errors
    ///
    /// [`TensorError::Label`] if no dimension is called so, [`TensorError::Range`].
    pub fn narrow(&self, label: &str, range: Range<u64>) -> Checked<Self> {
        let mut narrow = self.clone();
        let dim = narrow.dim(label)?;
        if range.start >= range.end || range.end > dim.size {
            return Err(TensorError::Range {
                label: label.to_owned(),
                start: range.start,
                end: range.end,
                size: dim.size,
            });
        }
        dim.size = range.end - range.start;
        if let Split::Inner(n) = dim.word.split
            && dim.size != u64::from(n.get())
        {
            return Err(TensorError::Inner {
                label: label.to_owned(),
                size: dim.size,
                split: n.get(),
            });
        }
        let moved = dim.stride_bytes.checked_mul(range.start);
        let offset = moved.and_then(|moved| moved.checked_add(narrow.offset_bytes));
        narrow.offset_bytes = offset.ok_or_else(|| too_large("offset", u64::MAX))?;
        Ok(narrow)
    }

    /// One index of the dimension called `label`, which is gone then.
    ///
    /// # Errors
    ///
    /// As [`narrow`](Self::narrow).
    pub fn select(&self, label: &str, index: u64) -> Checked<Self> {
        let mut one = self.clone();
        let dim = one.dim(label)?;
        let size = dim.size;
        if index >= size {
            return Err(TensorError::Range {
                label: label.to_owned(),
                start: index,
                end: index.saturating_add(1),
                size,
            });
        }
        let moved = dim.stride_bytes.checked_mul(index);
        let offset = moved.and_then(|moved| moved.checked_add(one.offset_bytes));
        one.offset_bytes = offset.ok_or_else(|| too_large("offset", u64::MAX))?;
        one.dims.retain(|dim| dim.word.key() != label);
        Ok(one)
    }

    fn dim(&mut self, label: &str) -> Checked<&mut Dim> {
        let known: Vec<String> = self.dims.iter().map(|dim| dim.word.key()).collect();
        let at = known.iter().position(|key| key == label);
        match at {
            Some(at) => Ok(&mut self.dims[at]),
            None => Err(TensorError::Label {
                label: label.to_owned(),
                problem: format!(
                    "no dimension is called so; expected one of {}",
                    known.join(", ")
                ),
            }),
        }
    }

    /// The form that descriptions hold. Each index of the axes in `regions` is a tensor of its own.
    ///
    /// # Errors
    ///
    /// [`TensorError::Label`] for labels that make no notation together, [`TensorError::Layout`] for
    /// dimensions that overlap.
    pub fn place(&self, regions: &[Axis]) -> Checked<Placed> {
        let placed = self.unchecked(regions)?;
        self.fill_in(&placed, self.extents()?)?;
        Ok(placed)
    }

    /// The address of every unit, if the tensor is as large as `extents` says. `part` is 1 where the
    /// tensor was cut to one component.
    ///
    /// # Errors
    ///
    /// As [`place`](Self::place), and [`TensorError::Shape`].
    pub fn layout(&self, regions: &[Axis], extents: Extents) -> Checked<Layout> {
        let own = self.extents()?;
        for axis in Axis::ALL {
            let (size, extent) = (own.of(axis), extents.of(axis));
            if size != extent && !regions.contains(&axis) {
                return Err(TensorError::Shape {
                    axis,
                    size: u64::from(size),
                    extent,
                });
            }
        }
        self.fill_in(&self.unchecked(regions)?, extents)
    }

    fn fill_in(&self, placed: &Placed, extents: Extents) -> Checked<Layout> {
        Ok(placed.layout(extents, self.unit_bytes, 0)?)
    }

    /// Indices along each axis.
    fn extents(&self) -> Checked<Extents> {
        let of = |axis: Axis| {
            let dims = self.dims.iter().filter(|dim| dim.word.axis == axis);
            let mut size = 1_u64;
            for dim in dims {
                size = size.saturating_mul(dim.size);
            }
            u32::try_from(size).map_err(|_| TensorError::TooLarge {
                field: format!("shape of `{axis}`"),
                value: size,
                most: u64::from(u32::MAX),
            })
        };
        Ok(Extents {
            layer: of(Axis::Layer)?,
            part: of(Axis::Part)?,
            page: of(Axis::Page)?,
            head: of(Axis::Head)?,
            slot: of(Axis::Slot)?,
            dim: of(Axis::Dim)?,
        })
    }

    /// Words by stride, longest first. Sizes of 1 have none: such an axis is left out, and of a split
    /// only the other half is there.
    fn unchecked(&self, regions: &[Axis]) -> Checked<Placed> {
        let label = |dim: &Dim, problem: &str| TensorError::Label {
            label: dim.word.key(),
            problem: problem.to_owned(),
        };
        for dim in &self.dims {
            if regions.contains(&dim.word.axis) {
                return Err(label(dim, "is a dimension and picks a region as well"));
            }
            let mates = self.dims.iter().filter(|o| o.word.axis == dim.word.axis);
            let splits: Vec<Split> = mates.map(|o| o.word.split).collect();
            match splits[..] {
                [Split::Whole] => {}
                [Split::Outer(a), Split::Inner(b)] | [Split::Inner(a), Split::Outer(b)]
                    if a == b => {}
                _ => {
                    return Err(label(
                        dim,
                        "expected an axis whole, or split once into `axis/n` and `axis%n`",
                    ));
                }
            }
        }
        let mut dims: Vec<Dim> = self.dims.clone();
        dims.retain(|dim| dim.size > 1);
        for i in 0..dims.len() {
            let axis = dims[i].word.axis;
            if dims.iter().filter(|dim| dim.word.axis == axis).count() == 1 {
                dims[i].word.split = Split::Whole;
            }
        }
        dims.sort_by_key(|dim| std::cmp::Reverse(dim.stride_bytes));
        let words = regions.iter().map(|&axis| Word {
            axis,
            split: Split::Whole,
            region: true,
            stride_bytes: None,
        });
        let words: Vec<String> = words
            .chain(dims.iter().map(|dim| dim.word))
            .map(|word| word.to_string())
            .collect();
        // One element in one tensor: the notation wants a word all the same.
        let text = match words.is_empty() {
            true => "dim".to_owned(),
            false => words.join(" "),
        };
        let notation: Notation =
            text.parse()
                .map_err(|error: super::NotationError| TensorError::Label {
                    label: text.clone(),
                    problem: error.problem,
                })?;
        Ok(Placed {
            notation,
            offset_bytes: self.offset_bytes,
            strides_bytes: dims
                .iter()
                .map(|dim| (dim.word.key(), dim.stride_bytes))
                .collect::<BTreeMap<_, _>>(),
        })
    }
}

fn too_large(field: &str, value: u64) -> TensorError {
    TensorError::TooLarge {
        field: field.to_owned(),
        value,
        most: u64::MAX,
    }
}

/// A label as a word without region and stride.
fn word(label: &str) -> Checked<Word> {
    let fail = |problem: String| TensorError::Label {
        label: label.to_owned(),
        problem,
    };
    let cut = label.find(['/', '%']).unwrap_or(label.len());
    // The notation knows halves in pairs only, so the label is read together with its other half.
    let pair = match label.as_bytes().get(cut) {
        Some(b'/') => format!("{label} {}%{}", &label[..cut], &label[cut + 1..]),
        Some(b'%') => format!("{label} {}/{}", &label[..cut], &label[cut + 1..]),
        _ => label.to_owned(),
    };
    let notation: Notation = pair
        .parse()
        .map_err(|error: super::NotationError| fail(error.problem))?;
    let words = notation.words();
    let word = words[0];
    if word.region || word.stride_bytes.is_some() || word.key() != label {
        return Err(fail(
            "expected `axis`, `axis/n` or `axis%n` with axis one of layer, part, page, head, slot, dim"
                .into(),
        ));
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(labels: &[&str], shape: &[u64], strides: &[i64]) -> Checked<Tensor> {
        Tensor::elements(labels, shape, strides, 0, 2)
    }

    fn refusal(result: Checked<impl std::fmt::Debug>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_layout_is_refused_with_its_numbers() {
        let labels = ["page", "slot", "head", "dim"];
        let shape = [3, 4, 2, 8];
        for (made, said) in [
            (
                tensor(&labels[..3], &shape, &[64, 16, 8, 1]),
                "3 labels, 4 sizes and 4 strides",
            ),
            (
                tensor(&["page", "token", "head", "dim"], &shape, &[64, 16, 8, 1]),
                "label `token`: `token` is not an axis",
            ),
            (
                tensor(&["page", "slot", "slot", "dim"], &shape, &[64, 16, 8, 1]),
                "label `slot`: stands here a second time",
            ),
            (
                tensor(&["[page]", "slot", "head", "dim"], &shape, &[64, 16, 8, 1]),
                "label `[page]`: expected `axis`",
            ),
            (
                tensor(&["page{2}", "slot", "head", "dim"], &shape, &[64, 16, 8, 1]),
                "label `page{2}`: expected `axis`",
            ),
            (
                tensor(&labels, &[3, 0, 2, 8], &[64, 16, 8, 1]),
                "shape of `slot` is 0",
            ),
            (
                tensor(&labels, &shape, &[64, 0, 8, 1]),
                "stride of `slot` is 0 with a shape of 4",
            ),
            (
                tensor(&labels, &shape, &[64, 16, -8, 1]),
                "stride of `head` is -8 with a shape of 2",
            ),
            (
                Tensor::elements(&labels, &shape, &[64, 16, 8, 1], -4, 2),
                "offset is -4",
            ),
            (
                Tensor::bytes(&labels, &shape, &[128, 33, 16, 2], 0, 2),
                "stride of `slot` is 33 bytes, which is no multiple of the element's 2",
            ),
            (
                Tensor::bytes(&labels, &shape, &[128, 32, 16, 2], 5, 2),
                "offset is 5 bytes, which is no multiple of the element's 2",
            ),
            (
                Tensor::elements(&labels, &shape, &[i64::MAX, 16, 8, 1], 0, 4),
                "stride of `page` of 9223372036854775807 is more than 4611686018427387903",
            ),
            (
                tensor(&["page", "slot", "dim/4", "dim%8"], &shape, &[64, 16, 8, 1])
                    .and_then(|t| t.place(&[]).map(|_| t)),
                "label `dim/4`: expected an axis whole, or split once",
            ),
            (
                tensor(&["page", "slot", "head", "dim%4"], &shape, &[64, 16, 8, 1]),
                "shape of `dim%4` is 8; the inner half of a split by 4 has 4",
            ),
            (
                tensor(&["page", "slot", "head", "dim%8"], &shape, &[64, 16, 8, 1])
                    .and_then(|t| t.place(&[]).map(|_| t)),
                "label `dim%8`: expected an axis whole, or split once",
            ),
            (
                tensor(&["layer", "slot", "head", "dim"], &shape, &[64, 16, 8, 1])
                    .and_then(|t| t.place(&[Axis::Layer]).map(|_| t)),
                "label `layer`: is a dimension and picks a region as well",
            ),
            // A sliding view: every token would be in several pages.
            (
                tensor(&labels, &shape, &[16, 16, 8, 1]).and_then(|t| t.place(&[]).map(|_| t)),
                "has a stride of 32 bytes, but the axes inside it reach",
            ),
            (
                tensor(&labels, &shape, &[64, 16, 8, 1]).and_then(|t| t.narrow("dim", 4..9)),
                "4..9 is not a range within `dim`, whose shape is 8",
            ),
            (
                tensor(&labels, &shape, &[64, 16, 8, 1]).and_then(|t| t.select("page", 3)),
                "3..4 is not a range within `page`, whose shape is 3",
            ),
            (
                tensor(&labels, &shape, &[64, 16, 8, 1]).and_then(|t| t.select("part", 0)),
                "label `part`: no dimension is called so; expected one of page, slot, head, dim",
            ),
        ] {
            let got = refusal(made);
            assert!(got.contains(said), "{got}\ndoes not say\n{said}");
        }
        let shape = Extents {
            layer: 1,
            part: 1,
            page: 3,
            head: 4,
            slot: 4,
            dim: 8,
        };
        let tensor = tensor(&labels, &[3, 4, 2, 8], &[64, 16, 8, 1]).unwrap();
        assert_eq!(
            refusal(tensor.layout(&[], shape)),
            "shape of `head` is 2, but the extent is 4; both must be equal"
        );
        assert_eq!(
            refusal(tensor.layout(
                &[],
                Extents {
                    head: 2,
                    layer: 5,
                    ..shape
                }
            )),
            "shape of `layer` is 1, but the extent is 5; both must be equal"
        );
    }

    #[test]
    fn sizes_of_one_have_no_stride() {
        // torch gives dimensions of size 1 any stride; half a split of size 1 is no split.
        let labels = ["page", "head", "dim/8", "slot", "dim%8"];
        let one = Tensor::elements(&labels, &[3, 1, 1, 4, 8], &[32, 0, -7, 8, 1], 0, 2).unwrap();
        let placed = one.place(&[Axis::Layer]).unwrap();
        assert_eq!(placed.notation.to_string(), "[layer] page slot dim");
        assert_eq!(placed.strides_bytes.len(), 3);
    }

    /// Words of each axis: whole, or split by a number that divides its extent.
    fn words(splits: &[u64; 4], extents: &[u64; 4]) -> Vec<(String, u64)> {
        let mut words = Vec::new();
        for ((name, &n), &extent) in ["page", "head", "slot", "dim"]
            .iter()
            .zip(splits)
            .zip(extents)
        {
            if n == 0 {
                words.push(((*name).to_owned(), extent));
            } else {
                words.push((format!("{name}/{n}"), extent / n));
                words.push((format!("{name}%{n}"), n));
            }
        }
        words
    }

    proptest::proptest! {
        #[test]
        fn addresses_are_index_times_stride(
            outer in [1_u64..4, 1..4, 1..4, 1..4],
            splits in [0_u64..4, 0..4, 0..4, 0..4],
            keys in proptest::collection::vec(0_u32..1000, 8),
            padding in proptest::collection::vec(0_u64..3, 8),
            offset in 0_u64..7,
            unit in 1_u32..5,
            cut in 0_u64..3,
        ) {
            use proptest::prelude::*;
            let extents = [0, 1, 2, 3].map(|i| outer[i] * splits[i].max(1));
            let words = words(&splits, &extents);
            // Memory in a random order of the words, with random padding.
            let mut order: Vec<usize> = (0..words.len()).collect();
            order.sort_by_key(|&i| keys[i]);
            let mut strides = vec![0; words.len()];
            let mut next = 1;
            for &i in &order {
                strides[i] = next;
                next = next * words[i].1 + padding[i];
            }
            let labels: Vec<&str> = words.iter().map(|(label, _)| label.as_str()).collect();
            let shape: Vec<u64> = words.iter().map(|(_, size)| *size).collect();
            let given: Vec<i64> = strides.iter().map(|&s| s as i64).collect();
            let whole = Tensor::elements(&labels, &shape, &given, offset as i64, unit).unwrap();
            let in_bytes: Vec<i64> = given.iter().map(|s| s * i64::from(unit)).collect();
            let offset_bytes = offset * u64::from(unit);
            let same = Tensor::bytes(&labels, &shape, &in_bytes, offset_bytes as i64, unit);
            prop_assert_eq!(&whole, &same.unwrap());

            // From page `cut` on, where pages are whole.
            let first = if splits[0] == 0 && cut < extents[0] { cut } else { 0 };
            let tensor = match first {
                0 => whole,
                _ => whole.narrow("page", first..extents[0]).unwrap(),
            };
            let count = |i: usize| extents[i] as u32;
            let extents = Extents {
                layer: 5,
                part: 1,
                page: count(0) - first as u32,
                head: count(1),
                slot: count(2),
                dim: count(3),
            };
            let layout = tensor.layout(&[Axis::Layer], extents).unwrap();
            let placed = tensor.place(&[Axis::Layer]).unwrap();
            prop_assert_eq!(&layout, &placed.layout(extents, unit, 0).unwrap());
            let text = placed.notation.to_string();
            prop_assert_eq!(text.parse::<Notation>().unwrap(), placed.notation);

            for (page, head, slot, dim) in (0..extents.page).flat_map(|p| {
                (0..extents.head).flat_map(move |h| {
                    (0..extents.slot).flat_map(move |s| (0..extents.dim).map(move |d| (p, h, s, d)))
                })
            }) {
                let index = [u64::from(page) + first, head.into(), slot.into(), dim.into()];
                let mut at = offset;
                let mut word = 0;
                for axis in 0..4 {
                    match splits[axis] {
                        0 => at += index[axis] * strides[word],
                        n => {
                            at += index[axis] / n * strides[word];
                            word += 1;
                            at += index[axis] % n * strides[word];
                        }
                    }
                    word += 1;
                }
                let address = layout.address(4, page, head, slot, dim);
                prop_assert_eq!((address.region, address.byte), (4, at * u64::from(unit)));
            }
        }
    }
}
