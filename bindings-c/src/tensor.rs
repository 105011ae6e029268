//! Tensors to layouts.

use moai_fabric::{
    collectives::description::Layout,
    translate::layout::{Axis, Placed, Tensor},
};

use crate::{
    abi,
    arguments::{In, Out, Text},
    failure::{Failure, Status},
    structs,
    text::Given,
};

/// Axes of which each index is a tensor of its own.
pub(crate) fn axes(regions: Text) -> Result<Vec<Axis>, Failure> {
    let words = regions.optional("regions")?.unwrap_or_default();
    let axis = |word: &str| {
        let axis = Axis::ALL.into_iter().find(|axis| axis.name() == word);
        axis.ok_or_else(|| {
            let names = Axis::ALL.map(Axis::name).join(", ");
            let why = format!("names {word:?}, which is no axis; there are {names}");
            Failure::new(Status::Value, why).at("regions")
        })
    };
    words.split_whitespace().map(axis).collect()
}

fn wrong(error: impl ToString) -> Failure {
    Failure::new(Status::Tensor, error.to_string())
}

/// Where the rows of a tensor lie.
pub(crate) fn place(tensor: In<structs::Tensor>, regions: Text) -> Result<Placed, Failure> {
    let given = tensor.read("tensor")?;
    let axes = axes(regions)?;
    let labels = given.labels.read(given.dims, "tensor.labels")?;
    let shape = given.shape.read(given.dims, "tensor.shape")?;
    let strides = given.strides.read(given.dims, "tensor.strides")?;
    let labels: Vec<&str> = { labels.iter().enumerate() }
        .map(|(index, label)| label.read(&format!("tensor.labels[{index}]")))
        .collect::<Result<_, _>>()?;
    let (offset, unit) = (given.offset, given.element_bytes);
    let mut tensor = match given.in_bytes {
        0 => Tensor::elements(&labels, shape, strides, offset, unit),
        1 => Tensor::bytes(&labels, shape, strides, offset, unit),
        other => {
            let why = format!("is {other}; expected 0 or 1");
            return Err(Failure::new(Status::Value, why).at("tensor.in_bytes"));
        }
    }
    .map_err(|error| wrong(error).at("tensor"))?;
    let cuts = given.cuts.read(given.cut_count, "tensor.cuts")?;
    for (index, cut) in cuts.iter().enumerate() {
        let field = format!("tensor.cuts[{index}]");
        let label = cut.label.read(&format!("{field}.label"))?;
        tensor = match cut.drop {
            0 => tensor.narrow(label, cut.start..cut.end),
            1 if Some(cut.end) == cut.start.checked_add(1) => tensor.select(label, cut.start),
            1 => {
                let (start, end) = (cut.start, cut.end);
                let why = format!("drops the dimension of {start}..{end}; expected one index");
                return Err(Failure::new(Status::Value, why).at(format!("{field}.end")));
            }
            other => {
                let why = format!("is {other}; expected 0 or 1");
                return Err(Failure::new(Status::Value, why).at(format!("{field}.drop")));
            }
        }
        .map_err(|error| wrong(error).at(field))?;
    }
    tensor
        .place(&axes)
        .map_err(|error| wrong(error).at("tensor"))
}

abi! {
    fn moai_tensor_layout(tensor: In<structs::Tensor>, regions: Text, json: Out<Given>) {
        let out = json.text("json")?;
        let layout = Layout::from(place(tensor, regions)?);
        let text = serde_json::to_string(&layout);
        out.give(text.map_err(|error| Failure::new(Status::Internal, error.to_string()))?);
        Ok(())
    }
}
