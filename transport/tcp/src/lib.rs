//! The TCP provider: works everywhere, and is what the others are compared with.
//!
//! One thread, one [`TcpInterface`], readiness events from the system, no locks. What happens to a
//! byte:
//!
//! ```text
//!   send, post ─▶ ring ──────┬─▶ sendmsg ─▶ socket … socket ─▶ readv ─▶ pieces of regions     long pieces
//!   put, answer to a get     │                                  ├───▶ collected, handed over staged
//!     short pieces ─▶ chunk ─┤                                  └───▶ read buffer ─▶ pieces    short pieces
//!     long pieces ───────────┘                                                └───▶ headers, small frames
//! ```
//!
//! - `ring`, `outbound`: messages and batches that are queued for one peer, and how they are written.
//! - `operations`, `one_sided`: puts and gets in flight, and what peers may address.
//! - `framing`, `chunk`: how operations are cut into frames, and what of them is on its way.
//! - `copies`, `staged`: the way of device memory, through buffers that jobs copy from and to.
//! - `inbound`: the frames that come from one peer; `target`: those of puts and gets.
//! - `vectored`: the system calls that need `unsafe`, reading into pieces of regions and writing without signals.
//! - `connection`: both directions of one socket, from connecting to closed; `options`: what is set on it.
//! - `secure`: certificates, keys and TLS; `stream`: a socket with or without it.
//! - `lanes`: several connections to one peer.
//! - `listener`: accepting, also when the system has no descriptors left.
//! - `interface`: the table of connections, with whose turn it is; `provider`: the provider as a value.

mod capabilities;
mod chunk;
mod config;
mod connection;
mod copies;
mod framing;
mod inbound;
mod interface;
mod lanes;
mod limits;
mod listener;
mod location;
mod one_sided;
mod operations;
mod options;
mod outbound;
mod provider;
mod ring;
mod secure;
mod staged;
mod stream;
mod target;
mod vectored;

/// Name of the provider.
const NAME: &str = "tcp";

pub use config::TcpConfig;
pub use interface::TcpInterface;
pub use location::tcp_address;
pub use provider::TcpProvider;
pub use secure::{CertificateError, CertificateFiles, Described, Security, describe, identity_of};
