//! Descriptors.

use moai_fabric::collectives::{
    descriptor::{Descriptor, DescriptorError, RankShard, RegionSpec},
    request::Request,
};
use sha2::{Digest as _, Sha256};

use crate::{
    abi, abi_free,
    arguments::{Out, Text},
    failure::{Failure, Status},
    handle::{Handle, Object},
    text::Given,
};

/// A descriptor with the description that it was read from.
pub(crate) struct Described {
    pub(crate) side: Descriptor,
    pub(crate) json: String,
}

impl Object for Described {
    const KIND: u8 = 0x83;
    const NAME: &'static str = "moai_descriptor";
}

impl Described {
    pub(crate) fn read(json: &str) -> Result<Self, Failure> {
        let side = Descriptor::from_json(json).map_err(refused)?;
        let json = json.to_owned();
        Ok(Self { side, json })
    }

    fn rank(&self, rank: u32) -> Result<&RankShard, Failure> {
        let ranks = &self.side.ranks;
        { ranks.get(rank as usize) }.ok_or_else(|| absent("rank", rank, ranks.len()))
    }

    fn region(&self, rank: u32, region: u32) -> Result<&RegionSpec, Failure> {
        let regions = &self.rank(rank)?.regions;
        { regions.get(region as usize) }.ok_or_else(|| absent("region", region, regions.len()))
    }
}

/// An index is past the end.
pub(crate) fn absent(what: &str, index: u32, count: usize) -> Failure {
    let why = format!("is {index}; there are {count}");
    Failure::new(Status::Absent, why)
        .at(what)
        .values(count, index)
}

pub(crate) fn refused(error: DescriptorError) -> Failure {
    let message = error.to_string();
    let field = match error {
        DescriptorError::Field { field, .. } => field,
        DescriptorError::Syntax { line, column, .. } => format!("line {line}, column {column}"),
        _ => String::new(),
    };
    Failure::new(Status::Descriptor, message).at(field)
}

abi! {
    fn moai_descriptor_from_json(json: Text, descriptor: Out<Handle<Described>>) {
        let place = descriptor.place("descriptor")?;
        place.write(Handle::new(Described::read(json.read("json")?)?)?);
        Ok(())
    }

    fn moai_descriptor_json(descriptor: Handle<Described>, json: Out<Given>) {
        let descriptor = descriptor.get("descriptor")?;
        json.text("json")?.give(descriptor.json.as_str());
        Ok(())
    }

    fn moai_descriptor_digest(descriptor: Handle<Described>, digest: Out<u8>) {
        let descriptor = descriptor.get("descriptor")?;
        digest.digest("digest")?.write(Sha256::digest(descriptor.json.as_bytes()).into());
        Ok(())
    }

    fn moai_descriptor_layers(descriptor: Handle<Described>, layers: Out<u32>) {
        let descriptor = descriptor.get("descriptor")?;
        layers.place("layers")?.write(descriptor.side.layers);
        Ok(())
    }

    fn moai_descriptor_ranks(descriptor: Handle<Described>, ranks: Out<u32>) {
        let descriptor = descriptor.get("descriptor")?;
        ranks.place("ranks")?.write(descriptor.side.ranks.len() as u32);
        Ok(())
    }

    fn moai_descriptor_groups(descriptor: Handle<Described>, groups: Out<u32>) {
        let descriptor = descriptor.get("descriptor")?;
        groups.place("groups")?.write(descriptor.side.groups.len() as u32);
        Ok(())
    }

    fn moai_descriptor_group_name(descriptor: Handle<Described>, group: u32, name: Out<Given>) {
        let descriptor = descriptor.get("descriptor")?;
        let place = name.text("name")?;
        let groups = &descriptor.side.groups;
        let found = { groups.get(group as usize) }.ok_or_else(|| absent("group", group, groups.len()))?;
        place.give(found.name.as_str());
        Ok(())
    }

    fn moai_descriptor_regions(descriptor: Handle<Described>, rank: u32, regions: Out<u32>) {
        let descriptor = descriptor.get("descriptor")?;
        let place = regions.place("regions")?;
        place.write(descriptor.rank(rank)?.regions.len() as u32);
        Ok(())
    }

    fn moai_descriptor_region_bytes(descriptor: Handle<Described>, rank: u32, region: u32, bytes: Out<u64>) {
        let descriptor = descriptor.get("descriptor")?;
        let place = bytes.place("bytes")?;
        place.write(descriptor.region(rank, region)?.bytes);
        Ok(())
    }

    fn moai_descriptor_region_name(descriptor: Handle<Described>, rank: u32, region: u32, name: Out<Given>) {
        let descriptor = descriptor.get("descriptor")?;
        let place = name.text("name")?;
        place.give(descriptor.region(rank, region)?.name.as_str());
        Ok(())
    }

    fn moai_descriptor_pages_needed(
        descriptor: Handle<Described>,
        rank: u32,
        group: u32,
        tokens: u32,
        pages: Out<u64>,
    ) {
        let descriptor = descriptor.get("descriptor")?;
        let place = pages.place("pages")?;
        descriptor.rank(rank)?;
        let (side, groups) = (&descriptor.side, descriptor.side.groups.len());
        if group as usize >= groups {
            return Err(absent("group", group, groups));
        }
        place.write(Request::new(side, tokens).pages_needed(side, rank, group as usize));
        Ok(())
    }
}

abi_free! {
    fn moai_descriptor_free(descriptor: Handle<Described>);
}
