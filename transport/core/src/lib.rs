//! The contract that every way of moving bytes keeps.
//!
//! A [`Provider`] can open an [`Interface`]: one thread's view of a network, with the peers that are
//! connected through it. [`select()`] chooses among the providers that reach a peer, and says why.
//!
//! The layers above address memory of peers that have registered it, by [`Interface::put`] and
//! [`Interface::get`] between lists of strided [`Pieces`], or map it; and they speak to peers in two kinds of
//! frame:
//!
//! - a **message** is small and control-like. It is copied when it is sent and handed over whole.
//! - a **batch** is payload: the bytes of many cache rows, gathered behind one header. The sender
//!   writes it once, into the provider's staging memory ([`Interface::post`]). The receiver chooses
//!   per batch ([`Handler::landing`]) between having it collected and reading it straight into
//!   pieces of its regions.
//!
//! Frames to one peer arrive whole, once, and in the order in which they were sent, or the
//! connection ends with a [`Closed`] that says why. Nothing is promised between peers.
//!
//! # Who calls whom
//!
//! ```text
//!   driver ── connect, send, post, close, finish ──▶ interface      queue; never block, never call back
//!   driver ── poll(handler) ─────────────────────▶ interface        waits, then does the work
//!                 handler ◀── connected, message, landing, … ──┘    during poll only
//! ```
//!
//! A handler never holds the interface: what it wants sent it notes down, and its driver sends after
//! [`Interface::poll`] has returned. So no callback can be re-entered, and no lock is needed.
//!
//! # What bounds memory
//!
//! [`limits`] holds every limit with its reason. A length that a peer announces is compared with its
//! limit before it sizes anything, by [`wire`].
//!
//! # What is shared without a lock
//!
//! [`sync`] holds the structures that providers put into memory shared with a peer or with a thread of
//! their own. It is the only unsafe code here.
#![deny(unsafe_code)]

mod address;
mod capabilities;
mod completion;
mod copies;
mod endpoint;
mod error;
mod handler;
mod identity;
mod interface;
pub mod key;
pub mod limits;
mod peer;
mod piece;
mod pieces;
mod provider;
mod registry;
mod select;
mod stack;
mod stats;
pub mod sync;
pub mod wire;

pub use address::{Address, AddressError};
pub use capabilities::{Capabilities, Operation, Reach};
pub use completion::{Completion, Completions, Fault, Refusal};
pub use copies::Copies;
pub use endpoint::Endpoint;
pub use error::Error;
pub use handler::{Closed, Handler, Landing, Reject, Unauthenticated};
pub use identity::{AllowList, Identity, IdentityError, Name, NameError, Pattern, PatternError};
pub use interface::{Batch, Interface, Path, Posted, Token};
pub use key::{KeyError, RemoteKey, Rights};
pub use peer::PeerId;
pub use piece::{Piece, PieceError, admit_pieces};
pub use pieces::{Cursor, Lists, PieceList, Pieces, PiecesError, Run};
pub use provider::{Obstacle, Provider};
pub use registry::{Registration, RegistrationId, Registrations};
pub use select::{Candidate, Choice, NoPath, Wanted, select};
pub use stack::{ConnectError, Stack};
pub use stats::Stats;
