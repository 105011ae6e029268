//! Counters of an interface.

use std::ops::Add;

/// What an interface has done since it was opened. A snapshot: copied, never updated.
///
/// | field | unit | counts |
/// |---|---|---|
/// | `bytes_in`, `bytes_out` | bytes | read from and written to the network, headers included |
/// | `messages_in`, `messages_out` | messages | handed to the handler; gone out whole |
/// | `batches_in`, `batches_out` | batches | landed; gone out whole |
/// | `direct_pieces` | pieces | of regions that payload was read into, after merging |
/// | `direct_bytes` | bytes | of payload that landed in regions |
/// | `staged_bytes` | bytes | of payload that landed staged |
/// | `copied_bytes` | bytes | of direct payload that went through a buffer on its way |
/// | `puts`, `gets` | operations | of this side that have ended well |
/// | `put_bytes`, `got_bytes` | bytes | of those |
/// | `puts_in`, `gets_in` | frames | of peers' operations that this side has carried out |
/// | `faults` | operations | of this side that have ended otherwise |
/// | `refused` | frames | of peers' operations that this side has refused |
/// | `mapped_bytes` | bytes | of peers' memory that was mapped |
/// | `fallbacks` | connections | made by something slower than what was there |
/// | `busy` | calls | of send, post, put or get answered by `Busy` |
/// | `reads`, `writes`, `waits` | system calls | on connections; waiting for readiness |
/// | `connected` | connections | made by us |
/// | `accepted` | connections | taken from peers that came to us |
/// | `rejected` | connections | turned away because the table of peers was full |
/// | `authenticated` | connections | whose handshake ended well |
/// | `distrusted` | connections | whose handshake failed, on whichever side |
/// | `closed` | connections | ended, for whatever reason, also before they were taken |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // The table above documents them side by side.
pub struct Stats {
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub messages_in: u64,
    pub messages_out: u64,
    pub batches_in: u64,
    pub batches_out: u64,
    pub direct_pieces: u64,
    pub direct_bytes: u64,
    pub staged_bytes: u64,
    pub copied_bytes: u64,
    pub puts: u64,
    pub gets: u64,
    pub put_bytes: u64,
    pub got_bytes: u64,
    pub puts_in: u64,
    pub gets_in: u64,
    pub faults: u64,
    pub refused: u64,
    pub mapped_bytes: u64,
    pub fallbacks: u64,
    pub busy: u64,
    pub reads: u64,
    pub writes: u64,
    pub waits: u64,
    pub connected: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub authenticated: u64,
    pub distrusted: u64,
    pub closed: u64,
}

impl Add for Stats {
    type Output = Self;

    /// Of both interfaces together.
    fn add(self, more: Self) -> Self {
        Self {
            bytes_in: self.bytes_in + more.bytes_in,
            bytes_out: self.bytes_out + more.bytes_out,
            messages_in: self.messages_in + more.messages_in,
            messages_out: self.messages_out + more.messages_out,
            batches_in: self.batches_in + more.batches_in,
            batches_out: self.batches_out + more.batches_out,
            direct_pieces: self.direct_pieces + more.direct_pieces,
            direct_bytes: self.direct_bytes + more.direct_bytes,
            staged_bytes: self.staged_bytes + more.staged_bytes,
            copied_bytes: self.copied_bytes + more.copied_bytes,
            puts: self.puts + more.puts,
            gets: self.gets + more.gets,
            put_bytes: self.put_bytes + more.put_bytes,
            got_bytes: self.got_bytes + more.got_bytes,
            puts_in: self.puts_in + more.puts_in,
            gets_in: self.gets_in + more.gets_in,
            faults: self.faults + more.faults,
            refused: self.refused + more.refused,
            mapped_bytes: self.mapped_bytes + more.mapped_bytes,
            fallbacks: self.fallbacks + more.fallbacks,
            busy: self.busy + more.busy,
            reads: self.reads + more.reads,
            writes: self.writes + more.writes,
            waits: self.waits + more.waits,
            connected: self.connected + more.connected,
            accepted: self.accepted + more.accepted,
            rejected: self.rejected + more.rejected,
            authenticated: self.authenticated + more.authenticated,
            distrusted: self.distrusted + more.distrusted,
            closed: self.closed + more.closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_in_the_table() {
        let table: String = include_str!("stats.rs")
            .lines()
            .filter(|line| line.starts_with("/// | `"))
            .collect();
        let fields = format!("{:?}", Stats::default());
        let names = fields
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
        for name in names {
            assert!(table.contains(&format!("`{name}`")), "{name}");
        }
    }
}
