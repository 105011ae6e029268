//! An engine whose processes say what they should not: the others must hold all the same.

use moai_collectives::protocol::node::{Message, Reason};

use super::world::{MS, Pid, World};

/// Messages of liars that are remembered, to be said again.
const MOST_SAID: usize = 64;

impl World {
    /// Whether a process says what it should not, for now.
    pub(super) fn lies(&self, pid: Pid) -> bool {
        Some(self.processes[pid].engine) == self.liar
    }

    /// Whether peers may find the protocol broken on a link: it has a liar at an end, or comes by twice what was said once.
    pub(super) fn may_break(&self, ends: [Pid; 2]) -> bool {
        self.tuning().repeats_per_mille > 0 || ends.iter().any(|&pid| self.lies(pid))
    }

    /// What a liar says instead of a message.
    pub(super) fn distort(&mut self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        // Who one is, is for certificates to prove.
        if self.healed || matches!(bytes.first(), Some(1 | 2)) || !self.random.chance(150) {
            if self.said.len() == MOST_SAID {
                self.said.remove(0);
            }
            if !matches!(bytes.first(), Some(1 | 2)) {
                self.said.push(bytes.clone());
            }
            return vec![bytes];
        }
        self.summary.lies += 1;
        match self.random.below(6) {
            0 => Vec::new(),
            1 => vec![bytes.clone(), bytes],
            2 => {
                let mut bytes = bytes;
                let at = self.random.below(bytes.len());
                // Not its kind: it would be read as another.
                if at > 0 {
                    bytes[at] ^= 1 << self.random.below(8);
                }
                vec![bytes]
            }
            // As if it had been asked for what was pushed to another.
            3 => match self.pushed_elsewhere() {
                Some(offer) => {
                    let (reason, why) = (Reason::Local, "because".to_owned());
                    vec![bytes, Message::Decline { offer, reason, why }.encode()]
                }
                None => vec![bytes],
            },
            4 if !self.said.is_empty() => {
                let again = self.said[self.random.below(self.said.len())].clone();
                vec![bytes, again]
            }
            _ => {
                let made_up = self.make_up().encode();
                vec![bytes, made_up]
            }
        }
    }

    /// The last offer that was pushed to an engine that does not lie.
    fn pushed_elsewhere(&self) -> Option<u64> {
        let mut requests = self.requests.iter().rev();
        let pushed = requests
            .find(|request| request.granted.is_some() && Some(request.consumer) != self.liar);
        pushed.map(|request| request.number)
    }

    /// A message about something that may be there, and is none of the liar's business.
    fn make_up(&mut self) -> Message {
        let transfer = self.random.range(1, 12);
        let part = self.random.below(4) as u32;
        let number = self.random.range(1, self.requests.len() as u64 + 1);
        let huge = self.random.chance(200);
        let count = if huge {
            u64::MAX
        } else {
            self.random.range(0, 8)
        };
        let why = "because".to_owned();
        let reason = Reason::Local;
        match self.random.below(13) {
            0 => Message::Accept {
                transfer,
                part,
                chunks: count,
                bytes: count,
                mapped: self.random.chance(300),
            },
            1 => Message::Refuse {
                transfer,
                part,
                reason,
                why,
            },
            2 => Message::Ready {
                transfer,
                part,
                layer: count as u32,
                tokens: count as u32,
            },
            3 => Message::Sums {
                transfer,
                part,
                mapped: false,
                first: count as u32,
                sums: vec![count; 2],
            },
            4 => Message::Discard {
                transfer,
                part,
                reason,
                why,
            },
            5 => Message::Stop {
                transfer,
                part,
                reason,
                why,
            },
            6 => Message::Stopped { transfer, part },
            7 => Message::Done {
                transfer,
                part,
                committed: self.random.chance(500),
            },
            8 => Message::Unmapped {
                transfer,
                part,
                why,
            },
            9 => Message::Keys {
                rank: part,
                left: 0,
                keys: Vec::new(),
            },
            10 => Message::Pages {
                transfer,
                part,
                left: count as u32,
                pages: vec![1],
            },
            // Of offers of every engine, those that were pushed to others among them.
            _ => Message::Decline {
                offer: number,
                reason,
                why,
            },
        }
    }

    /// Who is slow takes so many times as long for each chunk.
    pub(super) fn pace(&self, pid: Pid) -> u64 {
        self.engines[self.processes[pid].engine].slowness
    }

    /// How much later a repeated chunk arrives.
    pub(super) fn repeat_after(&mut self) -> u64 {
        self.random.range(0, 20 * MS)
    }
}
