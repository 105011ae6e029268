//! A list of nodes in one text.

use std::collections::BTreeMap;

use super::{
    entry::{EngineName, EntryError, Node, NodeKey, shortened},
    source::SourceError,
};
use crate::limits::MAX_NODES;

/// Reads `ENGINE[/NODE]=ADDRESS[,ADDRESS…]`, such entries separated by semicolons. Nodes without numbers get the next.
pub(super) fn parse(text: &str) -> Result<Vec<(EngineName, Node)>, SourceError> {
    let entry = |cause| SourceError::Entry { cause };
    let mut list: Vec<(EngineName, Node)> = Vec::new();
    let mut next: BTreeMap<EngineName, u32> = BTreeMap::new();
    for item in text
        .split(';')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let form = || SourceError::Form {
            text: shortened(item),
        };
        let (name, addresses) = item.split_once('=').ok_or_else(form)?;
        let (engine, number) = match name.split_once('/') {
            Some((engine, number)) => (engine, Some(number.parse().map_err(|_| form())?)),
            None => (name, None),
        };
        let engine: EngineName = engine.parse().map_err(entry)?;
        let address = |text: &str| {
            let fail = |cause| SourceError::Entry {
                cause: EntryError::Address { cause },
            };
            text.trim().parse().map_err(fail)
        };
        let addresses = addresses
            .split(',')
            .map(address)
            .collect::<Result<_, _>>()?;
        let next = next.entry(engine.clone()).or_default();
        let number = number.unwrap_or(*next);
        *next = number.saturating_add(1);
        list.push((engine, Node::at(addresses).map_err(entry)?.numbered(number)));
    }
    check(&list).map_err(entry)?;
    Ok(list)
}

/// No engine has more nodes than engines have, nor one twice.
pub(super) fn check(list: &[(EngineName, Node)]) -> Result<(), EntryError> {
    let mut seen: BTreeMap<&EngineName, Vec<NodeKey>> = BTreeMap::new();
    for (engine, node) in list {
        seen.entry(engine).or_default().push(node.key());
    }
    for (engine, mut keys) in seen {
        if keys.len() > MAX_NODES {
            return Err(EntryError::Nodes {
                engine: engine.clone(),
                count: keys.len(),
                most: MAX_NODES,
            });
        }
        keys.sort_unstable();
        for pair in keys.windows(2) {
            if let [NodeKey::Number(a), NodeKey::Number(b)] = pair
                && a == b
            {
                return Err(EntryError::Twice {
                    engine: engine.clone(),
                    number: *a,
                });
            }
        }
    }
    Ok(())
}

/// The list as [`parse`] reads it.
pub(super) fn text(list: &[(EngineName, Node)]) -> String {
    let item = |(engine, node): &(EngineName, Node)| {
        let number = node
            .number
            .map_or_else(String::new, |number| format!("/{number}"));
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        format!("{engine}{number}={}", addresses.join(","))
    };
    list.iter().map(item).collect::<Vec<_>>().join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_numbered_as_they_come_unless_they_say() {
        let list = parse("a=tcp:h:1; b=tcp:h:2 ;a=tcp:h:3;a/7=tcp:h:4;a=tcp:h:5").unwrap();
        let numbers: Vec<_> = list
            .iter()
            .map(|(engine, node)| (engine.as_str(), node.number.unwrap()))
            .collect();
        assert_eq!(numbers, [("a", 0), ("b", 0), ("a", 1), ("a", 7), ("a", 8)]);
    }

    #[test]
    fn a_node_is_listed_once_and_there_are_not_too_many() {
        let error = parse("a/1=tcp:h:1;a/1=tcp:h:2").unwrap_err().to_string();
        assert!(error.contains("engine a lists node 1 twice"), "{error}");
        let many: Vec<_> = (0..=MAX_NODES).map(|n| format!("a=tcp:h:{n}")).collect();
        let error = parse(&many.join(";")).unwrap_err().to_string();
        assert!(error.contains("4097 nodes"), "{error}");
    }
}
