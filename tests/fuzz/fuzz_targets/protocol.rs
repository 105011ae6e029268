//! What a node says on a link: messages as they are decoded, and a node that is sent any number of them, before the greeting or
//! after it.
//!
//! Nothing panics or takes memory beyond what arrived; what is decoded can be said again; and a node that is sent anything on a
//! link keeps its tables as small as the link asks for, and forgets all of it with the link.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moai_collectives::protocol::{
    handle::EngineKey,
    node::{Action, Config, Hello, LinkId, Message, NEWEST, Node, OLDEST, OfferSpec, Owed},
};
use sha2::{Digest as _, Sha256};

/// Entries of a node with one offer and one link: a few for each message that fits into an input.
const ENTRIES: usize = 1024;

const LINK: LinkId = LinkId(1);
const DESCRIPTOR: &[u8] = b"a cache";
const AGREEMENT: [u8; 32] = [7; 32];

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = Message::decode(data) {
        // Texts are made fit for people, so that the bytes need not be the same; what is said then stays.
        let said = message.encode();
        let again = Message::decode(&said).expect("a message that can be said");
        assert_eq!(again.encode(), said);
    }
    let Some((&first, mut rest)) = data.split_first() else {
        return;
    };
    let mut node = node();
    if first % 2 == 1 {
        greet(&mut node);
    }
    // Messages with their lengths before them.
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(more.len());
        let (message, more) = more.split_at(length);
        node.message(LINK, message, 2);
        act(&mut node);
        rest = more;
        assert!(node.size() <= ENTRIES, "{} entries of one link", node.size());
    }
    node.closed(LINK, "the end", 3);
    act(&mut node);
    node.withdraw(1, 3);
    act(&mut node);
    assert!(node.is_idle(), "{node:?}");
});

/// A node with an offer, to which somebody connects.
fn node() -> Node {
    let mut config = Config::new("b", 0, vec![0], 1, EngineKey::new([1; 32]));
    config.descriptor = DESCRIPTOR.into();
    let mut node = Node::new(config).expect("a configuration in order");
    let offer = OfferSpec {
        number: 1,
        pages: [0; 16],
        generation: 0,
        tokens: 16,
        lease_ns: 1 << 40,
        bound: None,
        progressive: false,
    };
    node.offer(offer, 1, 0).expect("the first offer");
    node.accepted(LINK, None, 1);
    node
}

/// Comes to an agreement with it.
fn greet(node: &mut Node) {
    let hello = Hello {
        oldest: OLDEST,
        newest: NEWEST,
        node: 0,
        to_node: 0,
        epoch: 2,
        serial: 1,
        nonce: 5,
        echo: 0,
        capabilities: u64::MAX,
        descriptor: Sha256::digest(DESCRIPTOR).into(),
        engine: "a".into(),
        to_engine: "b".into(),
        ranks: vec![0],
    };
    let mut say = |message: Message| {
        node.message(LINK, &message.encode(), 1);
        act(node)
    };
    let nonce = say(Message::Hello(Box::new(hello))).expect("a Hello is answered");
    say(Message::Met { echo: nonce });
    let (total, bytes) = (DESCRIPTOR.len() as u32, DESCRIPTOR.to_vec());
    say(Message::Description { total, bytes });
    say(Message::Agreed { digest: AGREEMENT });
    assert!(node.ready_link("a", 0).is_some(), "{node:?}");
}

/// Does what the node wants as a driver would; the nonce of its Hello, if it says one.
fn act(node: &mut Node) -> Option<u64> {
    let mut nonce = None;
    while let Some(action) = node.actions().pop_front() {
        match action {
            Action::Send { message: Message::Hello(hello), .. } => nonce = Some(hello.nonce),
            // Whatever it says can be read.
            Action::Send { message, .. } => {
                Message::decode(&message.encode()).expect("what a node says");
            }
            Action::Negotiate { digest, .. } => node.agreed(digest, Ok(AGREEMENT), 2),
            Action::Serve { serve, .. } => {
                let owed = Owed { chunks: 1, bytes: 1, steps: 1, parts: 1, mapped: false };
                node.accept(serve, owed, 2);
            }
            Action::StopServing { serve } => node.stopped(serve, 2),
            _ => {}
        }
    }
    nonce
}
