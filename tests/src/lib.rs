//! Tests that need more than one crate.
//!
//! The Rust blocks of the book under `docs/src` are doc tests of this crate, so that they compile and run with
//! `cargo test`; `tests/book.rs` looks after everything else in it.
#![forbid(unsafe_code)]

pub mod chaos;
pub mod impostor;
pub mod live;
pub mod plugins;
pub mod simulation;

macro_rules! page {
    ($($name:ident $file:literal)*) => {
        $(
            #[cfg(doctest)]
            #[doc = include_str!(concat!("../../docs/src/", $file))]
            #[derive(Debug)]
            pub struct $name;
        )*
    };
}

page! {
    Introduction "introduction.md"
    QuickStart "quick-start.md"
    Concepts "concepts.md"
    Vllm "vllm.md"
    Layout "layout.md"
    LayoutGallery "layout-gallery.md"
    Description "description.md"
    Formats "formats.md"
    Plans "plans.md"
    Engines "engines.md"
    Transfers "transfers.md"
    Protocol "protocol.md"
    Transport "transport.md"
    Provider "provider.md"
    Nixl "nixl.md"
    Directory "directory.md"
    Sglang "sglang.md"
    Metrics "metrics.md"
    FromC "c.md"
    FromPython "python.md"
    Security "security.md"
    CommandLine "command-line.md"
    Configuration "configuration.md"
    Limits "limits.md"
    Performance "performance.md"
    Tested "tested.md"
}
