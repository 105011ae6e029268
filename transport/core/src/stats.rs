//! Counters of an interface.

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
/// | `busy` | calls | of send or post answered by `Busy` |
/// | `reads`, `writes`, `waits` | system calls | on connections; waiting for readiness |
/// | `connected` | connections | made by us |
/// | `accepted` | connections | taken from peers that came to us |
/// | `rejected` | connections | turned away because the table of peers was full |
/// | `closed` | connections | ended, for whatever reason |
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
    pub busy: u64,
    pub reads: u64,
    pub writes: u64,
    pub waits: u64,
    pub connected: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub closed: u64,
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
