//! Structs of the header, member by member; a test compares them.

use std::ffi::{c_char, c_void};

use crate::{
    arguments::{Array, In, Text, Versioned},
    handle::Handle,
    memory::Memory,
};

pub(crate) const DLPACK_DIMS: usize = 8;

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Dlpack {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) data: *mut c_void,
    pub(crate) bytes: u64,
    pub(crate) device_type: i32,
    pub(crate) device_id: i32,
    pub(crate) element_bytes: u32,
    pub(crate) dims: u32,
    pub(crate) shape: [i64; DLPACK_DIMS],
    pub(crate) strides: [i64; DLPACK_DIMS],
    pub(crate) is_contiguous: u32,
    pub(crate) is_dense: u32,
    pub(crate) is_read_only: u32,
    pub(crate) reserved: u32,
    pub(crate) element: *const c_char,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cut {
    pub(crate) label: Text,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) drop: u32,
    pub(crate) reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Tensor {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) dims: u32,
    pub(crate) element_bytes: u32,
    pub(crate) labels: Array<Text>,
    pub(crate) shape: Array<u64>,
    pub(crate) strides: Array<i64>,
    pub(crate) offset: i64,
    pub(crate) in_bytes: u32,
    pub(crate) cut_count: u32,
    pub(crate) cuts: Array<Cut>,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EngineOptions {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) name: Text,
    pub(crate) node: u32,
    pub(crate) produces: u32,
    pub(crate) consumes: u32,
    pub(crate) rank_count: u32,
    pub(crate) ranks: Array<u32>,
    pub(crate) epoch: u64,
    pub(crate) key: Array<u8>,
    pub(crate) regions: Array<Handle<Memory>>,
    pub(crate) region_count: u32,
    pub(crate) counts_reuse: u32,
    pub(crate) heartbeat_ns: u64,
    pub(crate) loss_ns: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Node {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) number: u32,
    pub(crate) rank_count: u32,
    pub(crate) ranks: Array<u32>,
    pub(crate) addresses: Array<Text>,
    pub(crate) address_count: u32,
    pub(crate) reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pages {
    pub(crate) first_rank: u32,
    pub(crate) rank_count: u32,
    pub(crate) group: u32,
    pub(crate) page_count: u32,
    pub(crate) pages: Array<u32>,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Request {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) tokens: u32,
    pub(crate) held: u32,
    pub(crate) layer_start: u32,
    pub(crate) layer_end: u32,
    pub(crate) digest: u32,
    pub(crate) list_count: u32,
    pub(crate) lists: Array<Pages>,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Offer {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) number: u64,
    pub(crate) request: In<Request>,
    pub(crate) lease_ns: u64,
    pub(crate) bound_to: Text,
    pub(crate) name: Text,
    pub(crate) trace: Text,
    pub(crate) progressive: u32,
    pub(crate) reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Pull {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) handle: Text,
    pub(crate) request: In<Request>,
    pub(crate) deadline_ns: u64,
    pub(crate) name: Text,
    pub(crate) by_layer: u32,
    pub(crate) no_map: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Grant {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) number: u64,
    pub(crate) request: In<Request>,
    pub(crate) lease_ns: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) bound_to: Text,
    pub(crate) name: Text,
    pub(crate) by_layer: u32,
    pub(crate) no_map: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EventFields {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) kind: u32,
    pub(crate) outcome: u32,
    pub(crate) transfer: u64,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) node: u32,
    pub(crate) layer: u32,
    pub(crate) rank: u32,
    pub(crate) peer_rank: u32,
    pub(crate) reason: u32,
    pub(crate) fenced: u32,
    pub(crate) dirty_count: u32,
    pub(crate) reserved: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Dirty {
    pub(crate) size: u32,
    pub(crate) version: u32,
    pub(crate) rank: u32,
    pub(crate) page_count: u32,
    pub(crate) pages: *const u32,
    pub(crate) group: *const c_char,
}

macro_rules! versioned {
    ($($name:ident = $text:literal;)*) => {$(
        // SAFETY: above, it is `repr(C)`, begins with `size` and `version`, and has integers and pointers only.
        unsafe impl Versioned for $name {
            const NAME: &'static str = $text;
        }
    )*};
}

versioned! {
    Dlpack = "moai_dlpack";
    Tensor = "moai_tensor";
    EngineOptions = "moai_engine_options";
    Node = "moai_node";
    Request = "moai_request";
    Offer = "moai_offer";
    Pull = "moai_pull";
    Grant = "moai_grant";
    EventFields = "moai_event_fields";
    Dirty = "moai_dirty";
}
