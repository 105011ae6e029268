//! What the vLLM connector loads.
//!
//! Two functions: [`moai_vllm_call`] takes a message of JSON and answers with one, [`moai_vllm_free`] takes an answer back. What is asked
//! and answered is in [`message`]; nothing of it is for anybody but the connector that this library is beside, and both change together.
//!
//! `unsafe` is in [`boundary`] alone: texts that come and go, and the memory of an engine's tensors.

#![deny(unsafe_code)]

mod boundary;
mod message;
mod nodes;

pub use boundary::{moai_vllm_call, moai_vllm_free};
pub use message::{Answer, Ask, Happened, Pages, Problem, Span};
pub use nodes::Nodes;
