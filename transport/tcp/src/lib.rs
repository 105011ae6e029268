//! The TCP provider: works everywhere, and is what the others are compared with.
//!
//! One thread, one [`TcpInterface`], readiness events from the system, no locks. What happens to a
//! byte:
//!
//! ```text
//!   send, post ─▶ ring ─▶ writev ─▶ socket … socket ─▶ readv ─▶ pieces of regions     direct
//!                 (outbound)                              ├───▶ collected, handed over staged
//!                                                         └───▶ read buffer            headers, small frames
//! ```
//!
//! - `ring`, `outbound`: what is queued for one peer, and how it is written.
//! - `inbound`: the frames that come from one peer; `vectored`: the one system call that needs
//!   `unsafe`, reading into pieces of regions.
//! - `connection`: both of them on one socket, from connecting to closed.
//! - `listener`: accepting, also when the system has no descriptors left.
//! - `interface`: the table of connections and whose turn it is.

mod config;
mod connection;
mod inbound;
mod interface;
mod listener;
mod outbound;
mod ring;
mod vectored;

pub use config::TcpConfig;
pub use interface::TcpInterface;
