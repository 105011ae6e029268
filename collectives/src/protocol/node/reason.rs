//! Why something was refused or ended, as both sides and their counters name it.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a peer refused or ended something.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize, serde::Serialize,
        )]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $name = $code,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason with a code on the wire; [`Other`](Self::Other) if it is a later build's.
            #[must_use]
            pub const fn from_code(code: u8) -> Self {
                match code {
                    $($code => Self::$name,)*
                    _ => Self::Other,
                }
            }

            /// In a few words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// None of the others.
    Other = 0, "other";
    /// No version of the protocol that both sides speak.
    Version = 1, "no common version";
    /// The peer's identity may not speak for that engine.
    NotAllowed = 2, "identity not allowed";
    /// A later life of the engine is known.
    StaleEpoch = 3, "stale epoch";
    /// Another link between the two nodes is in use.
    Duplicate = 4, "another link is in use";
    /// The two sides' descriptions do not fit, or differ.
    Disagree = 5, "no agreement";
    /// The link was meant for another node.
    Misdirected = 6, "meant for another node";
    /// A limit is reached.
    Busy = 7, "a limit is reached";
    /// No offer has that number.
    UnknownOffer = 8, "unknown offer";
    /// The offer has been pulled.
    Consumed = 9, "offer consumed";
    /// The engine that made the handle has restarted.
    Restarted = 10, "producer restarted";
    /// The lease has run out.
    Expired = 11, "lease expired";
    /// The handle's engine did not make it.
    Forged = 12, "handle forged";
    /// The handle is for another engine.
    Elsewhere = 13, "handle for another engine";
    /// The pages hold something else by now.
    Reused = 14, "pages reused";
    /// The owner took it back.
    Withdrawn = 15, "withdrawn";
    /// The plan gives this pair of ranks nothing.
    NotOwed = 16, "nothing owed";
    /// A deadline passed.
    Deadline = 17, "deadline passed";
    /// The owner cancelled it.
    Cancelled = 18, "cancelled";
    /// Another part of the transfer failed.
    OtherPart = 19, "another part failed";
    /// The side could not go on.
    Local = 20, "local failure";
    /// The peer broke the protocol.
    Protocol = 21, "protocol broken";
    /// Digests differ.
    Digest = 22, "digests differ";
    /// The peer was lost.
    Lost = 23, "peer lost";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_their_places() {
        for (code, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, code);
            assert_eq!(Reason::from_code(code as u8), reason);
        }
        assert_eq!(Reason::from_code(250), Reason::Other);
    }
}
