//! The C library: `libmoai_fabric` and `moai_fabric.h`, which says what every function does.
//!
//! Nothing here is for Rust programs, which have `moai-fabric`.
//!
//! # Where `unsafe` is
//!
//! Functions of the interface are safe code: their parameters are of types of `arguments`, which only a caller of the C
//! interface can make. What the header asks of callers is what those types rely on; their methods check all that can be
//! checked (NULL, alignment, sizes and versions of structs, UTF-8, handles) and are the only ones that follow pointers of
//! callers, besides `dlpack`, which follows those of tensors, and `memory`, which lends bytes. Handles are no pointers at
//! all (`handle`).

mod arguments;
mod builder;
mod config;
mod descriptor;
mod dlpack;
mod engine;
mod event;
mod failure;
mod handle;
mod library;
mod memory;
mod negotiation;
mod progress;
mod requests;
mod structs;
mod tensor;
mod text;

/// Defines functions of the C interface that return a status.
///
/// The header documents them. No panic leaves them, and their failure is kept for the calling thread.
macro_rules! abi {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> crate::failure::Code {
            crate::failure::call(move || -> Result<(), crate::failure::Failure> { $body })
        }
    )*};
}

/// Defines functions of the C interface that give a handle up.
macro_rules! abi_free {
    ($(fn $name:ident($handle:ident: $type:ty);)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($handle: $type) {
            let _ = crate::failure::call(move || $handle.free());
        }
    )*};
}

use {abi, abi_free};
