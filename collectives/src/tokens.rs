//! Which tokens a rank holds, and where two ranks' tokens meet.
//!
//! A rank's tokens are runs in arithmetic progression, ascending. Whatever deals tokens out (all of
//! them, in turn by token or by page, in ranges, the last window only) is only another list of runs;
//! everything after works on runs.

use moai_translate::program::Progression;

/// Tokens in arithmetic progression, held one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Held {
    /// The first token.
    pub token: u32,
    /// From each token to the next.
    pub step: u32,
    /// How many.
    pub count: u32,
    /// Where the first lies among all tokens that the rank holds.
    pub index: u32,
}

/// How tokens are dealt to the ranks of a context parallel group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "the schema's rules")]
pub enum Deal {
    /// Every rank holds all.
    All,
    /// Token t belongs to rank t mod `ranks`.
    Token {
        /// Ranks.
        ranks: u32,
    },
    /// Token t belongs to rank ⌊t / `slots`⌋ mod `ranks`.
    Page {
        /// Ranks.
        ranks: u32,
        /// Tokens a page.
        slots: u32,
    },
    /// Ranks own ranges of ⌈tokens / `ranks`⌉.
    Contiguous {
        /// Ranks.
        ranks: u32,
    },
}

impl Deal {
    fn ranks(self) -> u32 {
        match self {
            Self::All => 1,
            Self::Token { ranks } | Self::Page { ranks, .. } | Self::Contiguous { ranks } => ranks,
        }
    }

    /// First token that a group with a window holds: the last `window` tokens, rounded out to pages.
    /// With several ranks the page that counts is one page of each.
    #[must_use]
    pub fn first(self, tokens: u32, window: Option<u32>, slots: u32) -> u32 {
        let Some(window) = window else { return 0 };
        let page = slots.saturating_mul(self.ranks());
        let first = tokens.saturating_sub(window);
        first - first % page
    }

    /// How many tokens from `first` to `tokens` rank `me` holds. Unlike [`held`](Self::held), costs the
    /// same for any number.
    #[must_use]
    pub fn count(self, me: u32, first: u32, tokens: u32) -> u64 {
        match self {
            Self::Page { ranks, slots } => {
                let (slots, ranks, me) = (u64::from(slots), u64::from(ranks), u64::from(me));
                let before = |token: u32| {
                    let (turns, rest) = (
                        u64::from(token) / (slots * ranks),
                        u64::from(token) % (slots * ranks),
                    );
                    turns * slots + rest.saturating_sub(me * slots).min(slots)
                };
                before(tokens).saturating_sub(before(first))
            }
            _ => self.run(me, first, tokens).map_or(0, |(token, step, end)| {
                u64::from(end.saturating_sub(token).div_ceil(step))
            }),
        }
    }

    /// The tokens from `first` to `tokens` that rank `me` holds.
    #[must_use]
    pub fn held(self, me: u32, first: u32, tokens: u32) -> Vec<Held> {
        let mut runs = Vec::new();
        self.held_into(me, first, tokens, &mut runs);
        runs
    }

    /// As [`held`](Self::held), into a list that is used again.
    pub fn held_into(self, me: u32, first: u32, tokens: u32, runs: &mut Vec<Held>) {
        runs.clear();
        let mut index = 0;
        let mut push = |token: u32, step: u32, end: u32| {
            if token < end {
                let count = (end - token).div_ceil(step);
                runs.push(Held {
                    token,
                    step,
                    count,
                    index,
                });
                index += count;
            }
        };
        match self {
            Self::Page { ranks, slots } => {
                let mut page = first / slots;
                page += (me + ranks - page % ranks) % ranks;
                while u64::from(page) * u64::from(slots) < u64::from(tokens) {
                    let start = page * slots;
                    push(
                        start.max(first),
                        1,
                        (start.saturating_add(slots)).min(tokens),
                    );
                    page += ranks;
                }
            }
            _ => {
                if let Some((token, step, end)) = self.run(me, first, tokens) {
                    push(token, step, end);
                }
            }
        }
    }

    /// First token, step and end of what rank `me` holds from `first` to `tokens`, where that is one run.
    fn run(self, me: u32, first: u32, tokens: u32) -> Option<(u32, u32, u32)> {
        match self {
            Self::All => Some((first, 1, tokens)),
            Self::Token { ranks } => {
                let lag = (me + ranks - first % ranks) % ranks;
                Some((first.saturating_add(lag), ranks, tokens))
            }
            Self::Contiguous { ranks } => {
                let each = tokens.div_ceil(ranks);
                let start = me.saturating_mul(each);
                let end = start.saturating_add(each).min(tokens);
                Some((start.max(first), 1, end))
            }
            Self::Page { .. } => None,
        }
    }
}

/// Leaves out the tokens before `first`; the others keep their places.
pub fn skip(runs: &mut Vec<Held>, first: u32) {
    runs.retain_mut(|run| {
        let before = first
            .saturating_sub(run.token)
            .div_ceil(run.step)
            .min(run.count);
        run.count -= before;
        run.index += before;
        run.token = run.token.saturating_add(before.saturating_mul(run.step));
        run.count > 0
    });
}

/// Tokens that both a source and a target rank hold, and where on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shared {
    /// The first token.
    pub token: u32,
    /// From each token to the next.
    pub step: u32,
    /// How many.
    pub count: u32,
    /// Where they lie among the source's tokens.
    pub source: Progression,
    /// Where they lie among the target's tokens.
    pub target: Progression,
}

/// The tokens that both lists hold, ascending. Costs the sum of both lengths.
#[must_use]
pub fn meet(source: &[Held], target: &[Held]) -> Vec<Shared> {
    let mut shared = Vec::new();
    meet_into(source, target, &mut shared);
    shared
}

/// As [`meet`], at the end of a list.
pub fn meet_into(source: &[Held], target: &[Held], shared: &mut Vec<Shared>) {
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (source.get(i), target.get(j)) {
        shared.extend(meet_runs(a, b));
        if a.last() <= b.last() {
            i += 1;
        } else {
            j += 1;
        }
    }
}

impl Held {
    fn last(&self) -> u32 {
        self.token + (self.count - 1) * self.step
    }

    fn place(&self, token: u32, step: u32) -> Progression {
        Progression {
            first: self.index + (token - self.token) / self.step,
            step: step / self.step,
        }
    }
}

/// The common terms of two progressions, which are a progression with the least common multiple as
/// step.
fn meet_runs(a: &Held, b: &Held) -> Option<Shared> {
    let low = a.token.max(b.token);
    let high = a.last().min(b.last());
    let step = u64::from(a.step) / u64::from(gcd(a.step, b.step)) * u64::from(b.step);
    // Context parallel sizes are small, so walking a's terms to the first that b has costs little.
    let lag = (low - a.token).div_ceil(a.step);
    let start = u64::from(a.token) + u64::from(lag) * u64::from(a.step);
    let token = (0..u64::from(b.step))
        .map(|k| start + k * u64::from(a.step))
        .take_while(|&token| token <= u64::from(high))
        .find(|&token| (token - u64::from(b.token)) % u64::from(b.step) == 0)?
        as u32;
    let count = ((u64::from(high) - u64::from(token)) / step + 1) as u32;
    // A single term may sit on a step beyond u32; any step will do for it.
    let step = if count == 1 {
        a.step.max(b.step)
    } else {
        step as u32
    };
    let one = count == 1;
    let place = |run: &Held| Progression {
        step: if one { 1 } else { run.place(token, step).step },
        ..run.place(token, step)
    };
    Some(Shared {
        token,
        step: if one { 1 } else { step },
        count,
        source: place(a),
        target: place(b),
    })
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who holds what, token by token.
    fn owner(deal: Deal, tokens: u32, token: u32) -> u32 {
        match deal {
            Deal::All => 0,
            Deal::Token { ranks } => token % ranks,
            Deal::Page { ranks, slots } => token / slots % ranks,
            Deal::Contiguous { ranks } => token / tokens.div_ceil(ranks),
        }
    }

    fn listed(runs: &[Held]) -> Vec<u32> {
        runs.iter()
            .flat_map(|r| (0..r.count).map(|i| r.token + i * r.step))
            .collect()
    }

    #[test]
    fn deals_and_meetings_agree_with_counting_tokens() {
        let deals = [
            Deal::All,
            Deal::Token { ranks: 2 },
            Deal::Token { ranks: 3 },
            Deal::Token { ranks: 4 },
            Deal::Page {
                ranks: 2,
                slots: 16,
            },
            Deal::Page { ranks: 3, slots: 5 },
            Deal::Contiguous { ranks: 2 },
            Deal::Contiguous { ranks: 5 },
        ];
        for tokens in [1, 2, 7, 61, 128] {
            for window in [None, Some(1), Some(20)] {
                for (a, b) in deals
                    .iter()
                    .flat_map(|a| deals.iter().map(move |b| (*a, *b)))
                {
                    let lists = |deal: Deal| -> Vec<(Vec<Held>, Vec<u32>)> {
                        let first = deal.first(tokens, window, 4);
                        let one = |me| {
                            let all = (first..tokens).filter(|&t| owner(deal, tokens, t) == me);
                            let all: Vec<u32> = all.collect();
                            assert_eq!(deal.count(me, first, tokens), all.len() as u64);
                            (deal.held(me, first, tokens), all)
                        };
                        (0..deal.ranks()).map(one).collect()
                    };
                    for (held, truth) in lists(a) {
                        assert_eq!(listed(&held), truth, "{a:?} {tokens} {window:?}");
                        for from in [0, 1, tokens / 2, tokens] {
                            let mut rest = held.clone();
                            skip(&mut rest, from);
                            let places = rest.iter().flat_map(|run| {
                                (0..run.count)
                                    .map(|i| (run.token + i * run.step, (run.index + i) as usize))
                            });
                            let left = truth.iter().enumerate().filter(|(_, t)| **t >= from);
                            let left: Vec<_> = left.map(|(i, t)| (*t, i)).collect();
                            assert_eq!(places.collect::<Vec<_>>(), left, "{a:?} from {from}");
                        }
                        for (other, other_truth) in lists(b) {
                            let mut want = Vec::new();
                            for (i, t) in truth.iter().enumerate() {
                                if let Some(j) = other_truth.iter().position(|o| o == t) {
                                    want.push((*t, i as u32, j as u32));
                                }
                            }
                            let mut got: Vec<_> = meet(&held, &other)
                                .iter()
                                .flat_map(|s| {
                                    (0..s.count).map(|i| {
                                        (s.token + i * s.step, s.source.at(i), s.target.at(i))
                                    })
                                })
                                .collect();
                            got.sort_unstable();
                            assert_eq!(got, want, "{a:?} and {b:?}, {tokens} tokens, {window:?}");
                        }
                    }
                }
            }
        }
    }
}
