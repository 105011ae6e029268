//! The knobs of the shared-memory provider.

use std::path::PathBuf;
use std::time::Duration;

use moai_transport::{Error, limits};

/// Where an interface waits for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // The two kinds of names that Unix sockets have.
pub enum Listen {
    /// A name of its own, which nobody has to clean up, for the processes of this network namespace.
    Unnamed,
    /// Such a name, chosen by the caller: printable ASCII, at most 100 bytes.
    Named(String),
    /// A path, in a directory that containers can share. The file is made, and removed again with the interface; one
    /// that a process has left behind, which has ended in another way, is replaced.
    Path(PathBuf),
}

/// How a [`ShmInterface`](crate::ShmInterface) is opened.
///
/// ```
/// use moai_transport_shm::{Listen, ShmConfig};
///
/// let config = ShmConfig { listen: Some(Listen::Unnamed), ..ShmConfig::default() };
/// assert_eq!(config.staging_bytes, 16 << 20);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Callers write out what they set.
pub struct ShmConfig {
    /// Where to listen. `None`, the default, only connects.
    ///
    /// The connection is neither authenticated nor encrypted: everyone who reaches the name is taken for a peer.
    pub listen: Option<Listen>,
    /// Payload that can be queued for one peer, in bytes: a power of two from 4 MiB to 1 GiB, by default 16 MiB, of
    /// which a frame takes at most half. The side that connects decides for both.
    ///
    /// Costs this much memory for each peer that is sent batches, and none before.
    pub staging_bytes: u32,
    /// How long a poll looks at shared memory before it sleeps, after something has happened; by default 20 µs. A
    /// poll that finds nothing new twice in a row sleeps at once, so that idle peers cost nothing.
    ///
    /// Longer saves waking up, some 5 µs a message, and takes the time from whoever else wants the core.
    pub spin: Duration,
    /// Whether memory that is not shared may be reached by the system's `process_vm_readv` and `process_vm_writev`
    /// where it permits; by default it may. Otherwise both sides copy it through the rings.
    pub foreign: bool,
    /// Whether to permit that to every process of the same user, where the system asks for permission
    /// (`PR_SET_PTRACER_ANY`, for `kernel.yama.ptrace_scope` 1); by default not. It holds for the whole process.
    pub permit_peers: bool,
    /// Most peers at a time, 1 to [`limits::MAX_PEERS`], which is the default. More that come are turned away.
    pub max_peers: usize,
    /// How long a peer that came to us may take for its first frame; by default [`limits::FIRST_FRAME_TIMEOUT`].
    pub first_frame_timeout: Duration,
    /// How long connecting may take; by default [`limits::CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long finishing may go without the peer closing its side; by default [`limits::FINISH_TIMEOUT`].
    pub finish_timeout: Duration,
}

impl Default for ShmConfig {
    fn default() -> Self {
        Self {
            listen: None,
            staging_bytes: DEFAULT_STAGING_BYTES,
            spin: Duration::from_micros(20),
            foreign: true,
            permit_peers: false,
            max_peers: limits::MAX_PEERS,
            first_frame_timeout: limits::FIRST_FRAME_TIMEOUT,
            connect_timeout: limits::CONNECT_TIMEOUT,
            finish_timeout: limits::FINISH_TIMEOUT,
        }
    }
}

/// A ring takes frames of half its size, less a header, and a power of two: twice the smallest in which the largest
/// batch fits is the smallest in which it certainly does.
const DEFAULT_STAGING_BYTES: u32 = 2 * limits::STAGING_RING_BYTES;

/// The longest message must fit.
pub(crate) const MIN_STAGING_BYTES: u32 = 4 * limits::MAX_MESSAGE_BYTES;

impl ShmConfig {
    /// Whether every knob is in its range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let staging = u64::from(self.staging_bytes);
        let knobs = [
            (
                "staging_bytes",
                staging,
                u64::from(MIN_STAGING_BYTES),
                u64::from(limits::MAX_STAGING_RING_BYTES),
            ),
            (
                "max_peers",
                self.max_peers as u64,
                1,
                limits::MAX_PEERS as u64,
            ),
        ];
        for (knob, value, smallest, largest) in knobs {
            if !(smallest..=largest).contains(&value) {
                return Err(Error::Config {
                    knob,
                    value,
                    smallest,
                    largest,
                });
            }
        }
        if !self.staging_bytes.is_power_of_two() {
            let above = staging.next_power_of_two();
            return Err(Error::Config {
                knob: "staging_bytes, a power of two,",
                value: staging,
                smallest: above / 2,
                largest: above,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_out_of_range_are_named() {
        assert!(ShmConfig::default().check().is_ok());
        let refused = |staging_bytes, max_peers| {
            let config = ShmConfig {
                staging_bytes,
                max_peers,
                ..ShmConfig::default()
            };
            config.check().unwrap_err().to_string()
        };
        assert_eq!(
            refused(0, 1),
            "staging_bytes is 0, which is not in 4194304..=1073741824"
        );
        assert!(refused(5 << 20, 1).contains("power of two"));
        assert!(refused(4 << 20, 1025).contains("max_peers is 1025"));
    }
}
