//! Structures that two threads, or two processes that map the same memory, use without a lock.
//!
//! | structure       | between                                           | lives in       |
//! |-----------------|---------------------------------------------------|----------------|
//! | [`ring`]        | one producer and one consumer of frames           | shared memory  |
//! | [`doorbell`]    | someone who may sleep and whoever has to wake it  | shared memory  |
//! | [`gate`]      | who owns memory and the peers that write into it  | shared memory  |
//! | [`completions`] | who posts operations and whoever completes them   | one process    |
//!
//! # Who may touch what
//!
//! Shared memory is only ever reached through [`shared`]: atomics by reference, payload by spans that
//! the ring's indices hand from one side to the other. The handles are used by one thread each
//! (methods take `&mut self`), so that between the two sides, and only there, ordering has to be argued.
//! Each module opens with its argument; loom tries the interleavings (`tests/loom`), Miri the memory.
//!
//! # A peer is not trusted
//!
//! The other side of shared memory may write anything to it at any time. So no pointer is kept there;
//! every index that is read from it is compared with what this side knows from private copies of its own,
//! before it is used; and what does not fit is [`Corrupt`], after which the connection is closed. Nothing
//! that a peer writes leads out of the memory, into a panic or into a loop without end.
#![allow(unsafe_code)] // Spans of shared memory are handed between threads by indices, beyond what types can say.

pub mod completions;
mod corrupt;
pub mod doorbell;
pub mod gate;
mod primitive;
pub mod ring;
pub mod shared;

pub use corrupt::Corrupt;
