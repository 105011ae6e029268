//! Descriptions, built piece by piece.

use std::sync::{Mutex, MutexGuard, TryLockError};

use moai_fabric::collectives::description::{
    Component, CpUnit, Description, Format, Granularity, Group, Layout, Model, Pairing, Parallel,
    PieceOf, Rank, Rope, Rotation, Scale, Values,
};

use crate::{
    abi, abi_free,
    arguments::{Array, In, Out, Text},
    descriptor::Described,
    failure::{Failure, Status},
    handle::{Handle, Object},
    structs,
    tensor::place,
    text::Given,
};

/// A description so far.
pub(crate) struct Builder(Mutex<Description>);

impl Object for Builder {
    const KIND: u8 = 0x85;
    const NAME: &'static str = "moai_builder";
}

impl Builder {
    fn lock(&self) -> Result<MutexGuard<'_, Description>, Failure> {
        match self.0.try_lock() {
            Ok(description) => Ok(description),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let why = "two threads use one builder at the same moment";
                Err(Failure::new(Status::Thread, why).at("builder"))
            }
        }
    }

    /// Changes a component that was added.
    fn component(
        &self,
        name: Text,
        change: impl FnOnce(&mut Component) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let name = name.read("component")?;
        let mut description = self.lock()?;
        let found = { description.components.iter_mut() }.find(|component| component.name == name);
        let component = found.ok_or_else(|| {
            let why = format!("is {name:?}, and none was added by that name");
            Failure::new(Status::Value, why)
                .at("component")
                .hint("add it by moai_builder_component first")
        })?;
        change(component)
    }

    /// Changes a rank that was added.
    fn rank(&self, rank: u32, change: impl FnOnce(&mut Rank)) -> Result<(), Failure> {
        let mut description = self.lock()?;
        let found = { description.ranks.iter_mut() }.find(|known| known.rank == rank);
        let found = found.ok_or_else(|| {
            let why = format!("is {rank}, and none was added by that number");
            Failure::new(Status::Value, why)
                .at("rank")
                .hint("add it by moai_builder_rank first")
        })?;
        change(found);
        Ok(())
    }

    fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string(&*self.lock()?);
        text.map_err(|error| Failure::new(Status::Internal, error.to_string()))
    }
}

fn one_of<T: Copy>(field: &str, given: &str, known: &[(&str, T)]) -> Result<T, Failure> {
    let found = known.iter().find(|(name, _)| *name == given);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|&(name, _)| name).collect();
        let why = format!("is {given:?}; expected {}", names.join(", "));
        Failure::new(Status::Value, why).at(field)
    })
}

fn rotation(text: &str) -> Result<Rotation, Failure> {
    let hadamard = |text: &str| text.strip_prefix("hadamard ")?.parse().ok();
    match text {
        "none" => Ok(Rotation::None),
        "signed" => Ok(Rotation::Signed),
        text => hadamard(text).map(Rotation::Hadamard).ok_or_else(|| {
            let why = format!("is {text:?}; expected none, signed or hadamard N");
            Failure::new(Status::Value, why).at("rotation")
        }),
    }
}

/// Constants of a scale: none, one, one a layer, or one a layer and head.
fn values(
    given: &[f64],
    granularity: Granularity,
    layers: u32,
    heads: u32,
) -> Result<Option<Values>, Failure> {
    let (count, layers, heads) = (given.len(), layers as usize, heads as usize);
    Ok(Some(match count {
        0 => return Ok(None),
        1 if granularity == Granularity::Tensor => Values::One(given[0]),
        _ if count == layers && granularity == Granularity::Tensor => {
            Values::Layers(given.to_vec())
        }
        _ if heads > 0
            && Some(count) == layers.checked_mul(heads)
            && granularity == Granularity::Head =>
        {
            Values::Heads(given.chunks(heads).map(<[f64]>::to_vec).collect())
        }
        _ => {
            let why = format!(
                "is {count}; {layers} layers and {heads} heads take 0, 1 or {layers} for a tensor, 0 or {} for a head",
                layers.saturating_mul(heads)
            );
            return Err(Failure::new(Status::Value, why).at("value_count"));
        }
    }))
}

fn add(
    builder: &Builder,
    (name, heads, dim): (Text, u32, u32),
    (pool, element): (Text, Text),
    layout: Layout,
) -> Result<(), Failure> {
    let component = Component {
        name: name.read("name")?.to_owned(),
        heads,
        dim,
        pool: pool.read("pool")?.to_owned(),
        format: Format {
            element: element.read("element")?.to_owned(),
            scale: None,
            scale_rule: None,
            rotation: None,
        },
        rope: None,
        part: None,
        group: None,
        of: None,
        layout,
    };
    builder.lock()?.components.push(component);
    Ok(())
}

abi! {
    fn moai_builder_new(builder: Out<Handle<Builder>>) {
        let place = builder.place("builder")?;
        let description = Description {
            version: 1,
            engine: String::new(),
            model: Model { name: String::new(), digest: None, layers: 0 },
            parallel: Parallel { tp: 1, pp: 1, cp: 1, rank_order: "pp cp tp".into(), cp_unit: None },
            page_slots: None,
            groups: Vec::new(),
            components: Vec::new(),
            ranks: Vec::new(),
            request: None,
        };
        place.write(Handle::new(Builder(Mutex::new(description)))?);
        Ok(())
    }

    fn moai_builder_engine(builder: Handle<Builder>, engine: Text) {
        let builder = builder.get("builder")?;
        let engine = engine.read("engine")?;
        engine.clone_into(&mut builder.lock()?.engine);
        Ok(())
    }

    fn moai_builder_model(builder: Handle<Builder>, name: Text, digest: Text, layers: u32) {
        let builder = builder.get("builder")?;
        let name = name.read("name")?.to_owned();
        let digest = digest.optional("digest")?.map(str::to_owned);
        builder.lock()?.model = Model { name, digest, layers };
        Ok(())
    }

    fn moai_builder_parallel(
        builder: Handle<Builder>,
        tp: u32,
        pp: u32,
        cp: u32,
        rank_order: Text,
        cp_unit: Text,
    ) {
        let builder = builder.get("builder")?;
        let rank_order = rank_order.optional("rank_order")?.unwrap_or("pp cp tp").to_owned();
        let units = [("token", CpUnit::Token), ("page", CpUnit::Page), ("contiguous", CpUnit::Contiguous)];
        let unit = cp_unit.optional("cp_unit")?;
        let cp_unit = unit.map(|unit| one_of("cp_unit", unit, &units)).transpose()?;
        builder.lock()?.parallel = Parallel { tp, pp, cp, rank_order, cp_unit };
        Ok(())
    }

    fn moai_builder_page_slots(builder: Handle<Builder>, page_slots: u32) {
        let builder = builder.get("builder")?;
        builder.lock()?.page_slots = Some(page_slots);
        Ok(())
    }

    fn moai_builder_group(
        builder: Handle<Builder>,
        name: Text,
        layers: Array<u32>,
        layer_count: u32,
        page_slots: u32,
        window: u32,
    ) {
        let builder = builder.get("builder")?;
        let group = Group {
            name: name.read("name")?.to_owned(),
            layers: None,
            layers_list: Some(layers.read(layer_count, "layers")?.to_vec()),
            page_slots: Some(page_slots).filter(|&slots| slots > 0),
            window: Some(window).filter(|&window| window > 0),
        };
        builder.lock()?.groups.push(group);
        Ok(())
    }

    fn moai_builder_component(
        builder: Handle<Builder>,
        name: Text,
        heads: u32,
        dim: u32,
        pool: Text,
        element: Text,
        layout: Text,
    ) {
        let builder = builder.get("builder")?;
        let layout = Layout::Text(layout.read("layout")?.to_owned());
        add(&builder, (name, heads, dim), (pool, element), layout)
    }

    fn moai_builder_component_tensor(
        builder: Handle<Builder>,
        name: Text,
        heads: u32,
        dim: u32,
        pool: Text,
        element: Text,
        tensor: In<structs::Tensor>,
        regions: Text,
    ) {
        let builder = builder.get("builder")?;
        let layout = Layout::from(place(tensor, regions)?);
        add(&builder, (name, heads, dim), (pool, element), layout)
    }

    fn moai_builder_scale(
        builder: Handle<Builder>,
        component: Text,
        granularity: Text,
        given: Array<f64>,
        value_count: u32,
    ) {
        let builder = builder.get("builder")?;
        let known = [
            ("tensor", Granularity::Tensor),
            ("head", Granularity::Head),
            ("token_head", Granularity::TokenHead),
        ];
        let granularity = one_of("granularity", granularity.read("granularity")?, &known)?;
        let given = given.read(value_count, "values")?;
        let layers = builder.lock()?.model.layers;
        builder.component(component, |component| {
            let values = values(given, granularity, layers, component.heads)?;
            component.format.scale = Some(Scale { granularity, kind: None, values });
            Ok(())
        })
    }

    fn moai_builder_scale_rule(builder: Handle<Builder>, component: Text, rule: Text) {
        let builder = builder.get("builder")?;
        let rule = rule.read("rule")?.to_owned();
        builder.component(component, |component| {
            component.format.scale_rule = Some(rule);
            Ok(())
        })
    }

    fn moai_builder_rope(builder: Handle<Builder>, component: Text, pairing: Text, dims: u32, offset: u32) {
        let builder = builder.get("builder")?;
        let known = [("half", Pairing::Half), ("interleaved", Pairing::Interleaved)];
        let pairing = one_of("pairing", pairing.read("pairing")?, &known)?;
        builder.component(component, |component| {
            component.rope = Some(Rope { pairing, dims, offset });
            Ok(())
        })
    }

    fn moai_builder_rotation(builder: Handle<Builder>, component: Text, text: Text) {
        let builder = builder.get("builder")?;
        let rotation = rotation(text.read("rotation")?)?;
        builder.component(component, |component| {
            component.format.rotation = Some(rotation);
            Ok(())
        })
    }

    fn moai_builder_part(builder: Handle<Builder>, component: Text, part: u32) {
        let builder = builder.get("builder")?;
        builder.component(component, |component| {
            component.part = Some(part);
            Ok(())
        })
    }

    fn moai_builder_in_group(builder: Handle<Builder>, component: Text, group: Text) {
        let builder = builder.get("builder")?;
        let group = group.read("group")?.to_owned();
        builder.component(component, |component| {
            component.group = Some(group);
            Ok(())
        })
    }

    fn moai_builder_piece(builder: Handle<Builder>, component: Text, of: Text, start: u32, end: u32) {
        let builder = builder.get("builder")?;
        let whole = of.read("of")?.to_owned();
        builder.component(component, |component| {
            component.of = Some(PieceOf { component: whole, dims: [start, end] });
            Ok(())
        })
    }

    fn moai_builder_rank(builder: Handle<Builder>, rank: u32, pages: u32) {
        let builder = builder.get("builder")?;
        let rank = Rank {
            rank,
            layers: None,
            layers_list: None,
            heads: None,
            pages,
            file: None,
            request_pages: None,
        };
        builder.lock()?.ranks.push(rank);
        Ok(())
    }

    fn moai_builder_rank_layers(builder: Handle<Builder>, rank: u32, layers: Array<u32>, layer_count: u32) {
        let builder = builder.get("builder")?;
        let layers = layers.read(layer_count, "layers")?.to_vec();
        builder.rank(rank, |rank| rank.layers_list = Some(layers))
    }

    fn moai_builder_rank_heads(builder: Handle<Builder>, rank: u32, start: u32, end: u32) {
        let builder = builder.get("builder")?;
        builder.rank(rank, |rank| rank.heads = Some([start, end]))
    }

    fn moai_builder_json(builder: Handle<Builder>, json: Out<Given>) {
        let builder = builder.get("builder")?;
        let place = json.text("json")?;
        place.give(builder.json()?);
        Ok(())
    }

    fn moai_builder_build(builder: Handle<Builder>, descriptor: Out<Handle<Described>>) {
        let builder = builder.get("builder")?;
        let place = descriptor.place("descriptor")?;
        place.write(Handle::new(Described::read(&builder.json()?)?)?);
        Ok(())
    }
}

abi_free! {
    fn moai_builder_free(builder: Handle<Builder>);
}
