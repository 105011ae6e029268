//! What a directory says, as each decoder of it sees it: entries of nodes, files of them, sources, and answers of name
//! servers. The first byte says which.
//!
//! None panics; an entry that is accepted is written as one that reads the same, and keeps to the limits.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use moai_collectives::limits::MAX_NODE_RANKS;
use moai_fabric::{
    directory::{Node, Record, Source, read_answer, read_file},
    limits::MAX_NODE_ADDRESSES,
};

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => {
            if let Ok(node) = Node::decode(rest) {
                assert!((1..=MAX_NODE_ADDRESSES).contains(&node.addresses.len()));
                assert!(node.ranks.len() <= MAX_NODE_RANKS);
                assert_eq!(Node::decode(node.encode().as_bytes()).expect("what was written"), node);
            }
        }
        1 => {
            if let Ok(entries) = read_file(Path::new("fuzzed"), rest) {
                for (engine, node) in entries {
                    let same = engine.as_str().parse().expect("a name that was accepted");
                    assert_eq!(engine, same);
                    let _ = node.key();
                }
            }
        }
        2 => {
            if let Ok(source) = String::from_utf8_lossy(rest).parse::<Source>() {
                let text = source.to_string();
                assert_eq!(text.parse::<Source>().expect("what was written"), source);
            }
        }
        _ => {
            let id = rest.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            for record in [Record::Srv, Record::A, Record::Aaaa] {
                let _ = read_answer(rest, id, "decode.kv.test", record);
            }
        }
    }
});
