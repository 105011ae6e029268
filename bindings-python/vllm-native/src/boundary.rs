//! The boundary to Python.
//!
//! Python gives texts that live as long as a call, and gets texts that it gives back. Of the memory it registers it says where it
//! is; what must hold of it is said at [`tensor`]. No panic crosses: it becomes an answer.

#![allow(unsafe_code, reason = "pointers of another language")]

use std::{
    ffi::{CString, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    sync::OnceLock,
};

use moai_memory::{MemoryKind, Region};

use crate::{
    message::{Answer, Problem, Span},
    nodes::Nodes,
};

/// Answers a message of `bytes` bytes of JSON with another, which ends with a zero byte and is given back by [`moai_vllm_free`].
///
/// From any thread. Never null.
///
/// # Safety
///
/// `text` points to so many bytes, which nobody changes during the call. Spans of memory that the message registers stay where they are, and are
/// readable and writable, until the node that they are registered with is closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moai_vllm_call(text: *const u8, bytes: usize) -> *mut c_char {
    static NODES: OnceLock<Nodes> = OnceLock::new();
    // SAFETY: the caller says that so many bytes are there, and stay as they are during the call.
    let text = unsafe { std::slice::from_raw_parts(text, bytes) };
    let nodes = NODES.get_or_init(Nodes::default);
    // What a panic leaves behind is a node whose locks are taken over as they are; its thread has its own state.
    let answered = catch_unwind(AssertUnwindSafe(|| nodes.answer(text)));
    let answer = answered.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Answer::Problem(Problem::local(format!(
            "the library panicked: {}",
            said.unwrap_or("it does not say why")
        )))
    });
    let text = serde_json::to_string(&answer).unwrap_or_else(|error| {
        format!(
            r#"{{"problem":{{"reason":"local","why":"an answer cannot be written: {error}"}}}}"#
        )
    });
    // JSON writes no zero byte as it is, so there is none.
    CString::new(text).unwrap_or_default().into_raw()
}

/// Takes an answer back. Null is none.
///
/// # Safety
///
/// It is an answer of [`moai_vllm_call`], and was not given back before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moai_vllm_free(answer: *mut c_char) {
    if !answer.is_null() {
        // SAFETY: the caller says that it is one of ours, which came from a `CString`.
        drop(unsafe { CString::from_raw(answer) });
    }
}

/// The memory of a tensor.
///
/// # Errors
///
/// What cannot be.
pub(crate) fn tensor(span: &Span) -> Result<Region, String> {
    let Span { address, bytes } = *span;
    let pointer = usize::try_from(address).ok();
    let pointer = pointer.and_then(|address| NonNull::new(address as *mut u8));
    let length = usize::try_from(bytes).ok();
    let length = length.filter(|&bytes| bytes > 0 && isize::try_from(bytes).is_ok());
    let (Some(pointer), Some(length)) = (pointer, length) else {
        return Err(format!("{bytes} bytes at {address:#x} are no memory"));
    };
    // SAFETY: who calls `moai_vllm_call` says that spans stay, readable and writable, until their node is closed; a node's
    // regions are dropped by closing it. Engines keep out of pages that are being transferred, by vLLM's own rules for
    // blocks that a connector reads or fills.
    Ok(unsafe { Region::from_raw(pointer, length, MemoryKind::Host, Box::new(())) })
}
