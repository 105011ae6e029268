//! What a peer sends over the wire, as each decoder of it sees it: headers with their lists of pieces, remote keys, addresses,
//! and the protocol's messages. The first byte says which.
//!
//! None panics or takes memory beyond what arrived; what is accepted encodes to the same bytes, or for messages to others that are accepted; and an accepted list is refused
//! or admitted by a table of registrations without reaching past them.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use moai_collectives::protocol::node::Message;
use moai_memory::Region;
use moai_transport::{
    Address, Cursor, PieceList, Refusal, Registrations, RemoteKey, Rights,
    wire::{self, HEADER_BYTES, Header},
};

/// Bytes of the registered region.
const REGION: u64 = 4096;
const EPOCH: u64 = 7;

struct Table {
    registrations: Registrations,
    list: PieceList,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new({
        let region = Region::from_host(vec![0; REGION as usize]);
        let mut registrations = Registrations::new(EPOCH);
        registrations.register(0, &region, Rights::READ.and(Rights::WRITE)).expect("an empty table");
        Table { registrations, list: PieceList::default() }
    });
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 4 {
        0 => frame(rest),
        1 => {
            if let Ok(key) = RemoteKey::decode(rest) {
                assert_eq!(key.encode(), rest);
            }
        }
        2 => {
            let text = String::from_utf8_lossy(rest);
            if let Ok(address) = text.parse::<Address>() {
                assert_eq!(address.to_string(), text);
            }
        }
        _ => {
            if let Ok(message) = Message::decode(rest) {
                // Texts are made fit for people, so that the bytes need not be the same.
                Message::decode(&message.encode()).expect("a message that can be said");
            }
        }
    }
});

fn frame(bytes: &[u8]) {
    let Some((header, list)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return;
    };
    let Ok(header) = Header::decode(header) else {
        return;
    };
    assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
    let (Header::Put(access) | Header::Get(access)) = header else {
        return;
    };
    TABLE.with_borrow_mut(|table| {
        if wire::decode_list(list, access.bytes, &mut table.list).is_err() {
            return;
        }
        let mut total = 0;
        for (pieces, generation) in table.list.lists() {
            let admitted =
                table.registrations.admit(access.epoch, generation, &pieces, Rights::WRITE);
            match admitted {
                Ok((_, bytes)) => total += bytes,
                Err(Refusal::Malformed) => panic!("a decoded list has pieces that cannot be"),
                Err(_) => return,
            }
        }
        assert_eq!(total, u64::from(access.bytes));
        let mut cursor = Cursor::default();
        while let Some(run) = cursor.next(&table.list, 1 << 16) {
            assert!(run.bytes > 0 && run.offset + u64::from(run.bytes) <= REGION);
        }
    });
}
