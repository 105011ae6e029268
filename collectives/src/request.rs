//! What of a cache is to be moved, as one side says it.
//!
//! A [`Descriptor`] says where rows lie for as long as the engine lives; a request comes and goes. It names its
//! tokens, which of them and of the layers are to be moved, and the pages in which each rank holds it. Lists of pages
//! lie one after another in one buffer, which the next request uses again; ranks that share a block table share a list.

use std::{fmt, ops::Range};

use thiserror::Error;

use crate::{
    description::{CpUnit, Description},
    descriptor::{Descriptor, DescriptorError, PageClash},
    digest::Coverage,
    limits,
    negotiate::Role,
};

/// Which layers of a request are moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "all, an interval, or any")]
pub enum Layers {
    /// All.
    #[default]
    All,
    /// An interval of global layers.
    Between(Range<u32>),
    /// Global layers, ascending.
    Only(Vec<u32>),
}

impl Layers {
    /// Whether a global layer is moved.
    #[must_use]
    pub fn contains(&self, layer: u32) -> bool {
        match self {
            Self::All => true,
            Self::Between(layers) => layers.contains(&layer),
            Self::Only(layers) => layers.binary_search(&layer).is_ok(),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all layers"),
            Self::Between(layers) => write!(f, "layers {}..{}", layers.start, layers.end),
            Self::Only(layers) => write!(f, "layers {layers:?}"),
        }
    }
}

/// One request on one side.
///
/// Each list of pages covers all tokens of the request that a rank holds of a group, those before
/// [`first`](Self::first) included: it is the block table as the engine has it.
///
/// # Example
///
/// ```
/// use moai_collectives::{descriptor::Descriptor, negotiate::Role, request::Request};
///
/// let side = Descriptor::from_json(r#"{
///   "version": 1, "model": { "layers": 2 }, "parallel": { "tp": 2 }, "page_slots": 16,
///   "components": [{ "name": "key", "heads": 4, "dim": 64, "pool": "kv",
///                    "format": { "element": "bf16" }, "layout": "[layer] page slot head dim" }],
///   "ranks": [{ "rank": 0, "pages": 8 }, { "rank": 1, "pages": 8 }]
/// }"#)?;
/// let mut request = Request::new(&side, 40);
/// request.give(0..2, 0, &[5, 0, 7])?;
/// // The consumer has the first 32 tokens already.
/// request.first = 32;
/// request.check(&side, Role::Consumer, 0..2)?;
///
/// request.renew(50);
/// request.give(0..2, 0, &[5, 0, 7])?;
/// let error = request.check(&side, Role::Consumer, 0..2).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "ranks[0].request_pages: lists 3 pages; 50 tokens of 50 in pages of 16 need 4"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    /// Its tokens, from 0.
    pub tokens: u32,
    /// The first token to be moved: those before it are there already.
    pub first: u32,
    /// Layers to be moved.
    pub layers: Layers,
    /// How much of what is moved is digested.
    pub coverage: Coverage,
    ranks: u32,
    groups: u32,
    /// Where the list of each rank and group lies in `pages`.
    lists: Vec<[u32; 2]>,
    pages: Vec<u32>,
}

/// A request is not one of the side that it is for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{at}: {problem}")]
#[non_exhaustive]
pub struct RequestError {
    /// The field.
    pub at: At,
    /// What is wrong with it.
    pub problem: Problem,
}

/// A field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a request has these fields")]
pub enum At {
    /// Its tokens.
    Tokens,
    /// The first token to be moved.
    First,
    /// The layers to be moved.
    Layers,
    /// The ranks.
    Ranks,
    /// The pages of a rank, of a group where there are several.
    Pages {
        /// Rank.
        rank: u32,
        /// Name of the group; empty without groups.
        group: String,
    },
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens => f.write_str("request.tokens"),
            Self::First => f.write_str("request.first"),
            Self::Layers => f.write_str("request.layers"),
            Self::Ranks => f.write_str("ranks"),
            Self::Pages { rank, group } if group.is_empty() => {
                write!(f, "ranks[{rank}].request_pages")
            }
            Self::Pages { rank, group } => write!(f, "ranks[{rank}].request_pages.{group}"),
        }
    }
}

/// What is wrong with a field of a request.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A number out of its range.
    #[error("{value} is not between {least} and {most}")]
    Range {
        /// What was given.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Layers are no interval, or not ascending.
    #[error(
        "{found} are not layers within 0..{layers}, ascending and each once; there is at least one"
    )]
    Layers {
        /// What was given.
        found: Layers,
        /// Layers of the model.
        layers: u32,
    },
    /// There is no such rank.
    #[error("rank {rank} is extra: the side has ranks 0..{ranks}")]
    NoRank {
        /// What was given.
        rank: u32,
        /// Ranks of the side.
        ranks: u32,
    },
    /// There is no such group.
    #[error("there is no group {group}; the side has {has}")]
    NoGroup {
        /// What was given.
        group: String,
        /// Names of the groups.
        has: String,
    },
    /// A list is not as long as the tokens need.
    #[error(
        "lists {listed} pages; {held} tokens of {tokens}{how} in pages of {slots} need {needed}"
    )]
    Count {
        /// Pages of the list.
        listed: u64,
        /// Pages that it needs.
        needed: u64,
        /// Tokens that the rank holds.
        held: u64,
        /// Tokens of the request.
        tokens: u32,
        /// How tokens are dealt to ranks, if they are.
        how: String,
        /// Tokens a page.
        slots: u32,
    },
    /// A page does not exist.
    #[error("page {page} is out of range: the rank has pages 0..{pages}")]
    NoPage {
        /// The page.
        page: u32,
        /// Pages of the rank.
        pages: u32,
    },
    /// A page is listed twice.
    #[error("page {page} is listed twice; its slots would be written by two tokens")]
    Twice {
        /// The page.
        page: u32,
    },
    /// Two pages of different groups share bytes.
    #[error("{0}")]
    Shared(PageClash),
}

impl Request {
    /// Reads and checks a description that has a request.
    ///
    /// # Errors
    ///
    /// [`DescriptorError`], also where there is none.
    pub fn read(text: &str) -> Result<(Descriptor, Self), DescriptorError> {
        Self::of(Descriptor::read(text)?)
    }

    /// As [`read`](Self::read), of a description that is read already.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn described(description: &Description) -> Result<(Descriptor, Self), DescriptorError> {
        Self::of(Descriptor::described(description)?)
    }

    fn of(
        (side, request): (Descriptor, Option<Self>),
    ) -> Result<(Descriptor, Self), DescriptorError> {
        let request = request.ok_or_else(|| DescriptorError::Field {
            field: "request".to_owned(),
            problem: "is missing; expected the request to be moved".to_owned(),
        })?;
        Ok((side, request))
    }

    /// All layers and tokens of a request of so many tokens, with no pages yet.
    #[must_use]
    pub fn new(side: &Descriptor, tokens: u32) -> Self {
        let (ranks, groups) = (side.ranks.len() as u32, side.groups.len() as u32);
        Self {
            tokens,
            first: 0,
            layers: Layers::All,
            coverage: Coverage::default(),
            ranks,
            groups,
            lists: vec![[0, 0]; (ranks * groups) as usize],
            pages: Vec::new(),
        }
    }

    /// Makes it another request of the same side, with no pages yet. Its buffers are kept.
    pub fn renew(&mut self, tokens: u32) {
        self.tokens = tokens;
        self.first = 0;
        self.layers = Layers::All;
        self.lists.fill([0, 0]);
        self.pages.clear();
    }

    /// Gives some ranks their pages of a group, in the order of the tokens that each of them holds.
    ///
    /// # Errors
    ///
    /// [`RequestError`], if there is no such rank or group.
    pub fn give(
        &mut self,
        ranks: Range<u32>,
        group: usize,
        pages: &[u32],
    ) -> Result<(), RequestError> {
        if ranks.end > self.ranks {
            let (rank, ranks) = (ranks.end - 1, self.ranks);
            return wrong(At::Ranks, Problem::NoRank { rank, ranks });
        }
        if group >= self.groups as usize {
            let at = At::Pages {
                rank: ranks.start,
                group: String::new(),
            };
            let has = format!("groups 0..{}", self.groups);
            return wrong(
                at,
                Problem::NoGroup {
                    group: group.to_string(),
                    has,
                },
            );
        }
        let start = self.pages.len() as u32;
        self.pages.extend_from_slice(pages);
        for rank in ranks {
            self.lists[rank as usize * self.groups as usize + group] =
                [start, self.pages.len() as u32];
        }
        Ok(())
    }

    /// Groups of the side that it is for.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups as usize
    }

    /// The pages of a rank and group; none if there is no such rank or group, or no list was given.
    #[must_use]
    pub fn pages(&self, rank: u32, group: usize) -> &[u32] {
        let at = rank as usize * self.groups as usize + group;
        let list = self.lists.get(at).filter(|_| group < self.groups as usize);
        list.map_or(&[], |&[start, end]| {
            &self.pages[start as usize..end as usize]
        })
    }

    /// Checks what it says against a side, and the pages of some of its ranks: those of others need not be known.
    ///
    /// A consumer's pages are written, so each is used once.
    ///
    /// # Errors
    ///
    /// [`RequestError`], for the first field that cannot be.
    pub fn check(
        &self,
        side: &Descriptor,
        role: Role,
        ranks: Range<u32>,
    ) -> Result<(), RequestError> {
        self.check_with(side, role, ranks, &mut Vec::new())
    }

    /// As [`check`](Self::check), with a buffer for one list of pages that the next check uses again.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn check_with(
        &self,
        side: &Descriptor,
        role: Role,
        ranks: Range<u32>,
        buffer: &mut Vec<u32>,
    ) -> Result<(), RequestError> {
        self.check_what(side)?;
        let has = (side.ranks.len() as u32, side.groups.len() as u32);
        if has != (self.ranks, self.groups) || ranks.end > self.ranks {
            let rank = ranks.end.max(self.ranks).saturating_sub(1);
            return wrong(At::Ranks, Problem::NoRank { rank, ranks: has.0 });
        }
        for rank in ranks.clone() {
            for group in 0..side.groups.len() {
                // The list that the rank before was found to have, for the same tokens.
                let like = rank > ranks.start && self.is_like_the_last(side, rank, group);
                if !like {
                    self.check_pages(side, role, rank, group, buffer)?;
                }
            }
            if let Some(clash) = side.pages_in_turns(rank, |group| self.pages(rank, group)) {
                let group = side.groups[clash.group].name.clone();
                return wrong(At::Pages { rank, group }, Problem::Shared(clash));
            }
        }
        Ok(())
    }

    /// Checks what both sides say alike.
    fn check_what(&self, side: &Descriptor) -> Result<(), RequestError> {
        let range = |at: At, value: u32, least: u32, most: u32| {
            let [number, least, most] = [value, least, most].map(u64::from);
            let fits = (least..=most).contains(&number);
            let problem = Problem::Range {
                value: number,
                least,
                most,
            };
            if fits { Ok(()) } else { wrong(at, problem) }
        };
        range(At::Tokens, self.tokens, 1, limits::MAX_TOKENS)?;
        range(At::First, self.first, 0, self.tokens - 1)?;
        let layers = side.layers;
        let fits = match &self.layers {
            Layers::All => true,
            Layers::Between(some) => some.start < some.end && some.end <= layers,
            Layers::Only(some) => {
                some.last().is_some_and(|&last| last < layers)
                    && some.windows(2).all(|pair| pair[0] < pair[1])
            }
        };
        let found = || self.layers.clone();
        if fits {
            Ok(())
        } else {
            wrong(
                At::Layers,
                Problem::Layers {
                    found: found(),
                    layers,
                },
            )
        }
    }

    /// Whether a rank has the list of the one before, and holds the same tokens of as many pages.
    fn is_like_the_last(&self, side: &Descriptor, rank: u32, group: usize) -> bool {
        let list = |rank: u32| self.lists[rank as usize * self.groups as usize + group];
        let of = |rank: u32| {
            let shard = &side.ranks[rank as usize];
            (
                list(rank),
                shard.cp,
                shard.pages,
                side.holds_layers_of(group, rank as usize),
            )
        };
        of(rank) == of(rank - 1)
    }

    /// How many pages a rank of a side has of a group, for the tokens of the request.
    ///
    /// # Panics
    ///
    /// If there is no such rank or group.
    #[must_use]
    pub fn pages_needed(&self, side: &Descriptor, rank: u32, group: usize) -> u64 {
        if !side.holds_layers_of(group, rank as usize) {
            return 0;
        }
        let (shard, start) = (&side.ranks[rank as usize], side.first(group, self.tokens));
        let held = side.deal(group).count(shard.cp, start, self.tokens);
        held.div_ceil(u64::from(side.groups[group].page_slots))
    }

    fn check_pages(
        &self,
        side: &Descriptor,
        role: Role,
        rank: u32,
        group: usize,
        sorted: &mut Vec<u32>,
    ) -> Result<(), RequestError> {
        let shard = &side.ranks[rank as usize];
        let at = || At::Pages {
            rank,
            group: side.groups[group].name.clone(),
        };
        let pages = self.pages(rank, group);
        let owns = side.holds_layers_of(group, rank as usize);
        let slots = side.groups[group].page_slots;
        let start = side.first(group, self.tokens);
        // Only counted: a list of runs would be as long as the page list should be, which is not known yet.
        let held_from = |token: u32| side.deal(group).count(shard.cp, token, self.tokens);
        let held = held_from(start);
        let needed = self.pages_needed(side, rank, group);
        let listed = pages.len() as u64;
        if listed != needed && (owns || listed != 0) {
            let how = how(side, shard.cp);
            let tokens = self.tokens;
            return wrong(
                at(),
                Problem::Count {
                    listed,
                    needed,
                    held,
                    tokens,
                    how,
                    slots,
                },
            );
        }
        sorted.clear();
        sorted.extend_from_slice(pages);
        sorted.sort_unstable();
        if let Some(&page) = sorted.last()
            && page >= shard.pages
        {
            return wrong(
                at(),
                Problem::NoPage {
                    page,
                    pages: shard.pages,
                },
            );
        }
        if role == Role::Consumer {
            // Pages that hold only what is there already are not written.
            let kept = (held - held_from(self.first.max(start))) / u64::from(slots);
            let written = &pages[(kept as usize).min(pages.len())..];
            let twice = sorted.windows(2).filter(|pair| pair[0] == pair[1]);
            let twice = twice
                .map(|pair| pair[0])
                .find(|page| kept == 0 || written.contains(page));
            if let Some(page) = twice {
                return wrong(at(), Problem::Twice { page });
            }
        }
        Ok(())
    }
}

fn wrong<T>(at: At, problem: Problem) -> Result<T, RequestError> {
    Err(RequestError { at, problem })
}

/// How tokens are dealt to a context parallel rank, for people.
fn how(side: &Descriptor, cp: u32) -> String {
    match side.cp_unit.filter(|_| side.parallel[2] > 1) {
        None => String::new(),
        Some(CpUnit::Token) => format!(", dealt by token to cp rank {cp}"),
        Some(CpUnit::Page) => format!(", dealt by page to cp rank {cp}"),
        Some(CpUnit::Contiguous) => format!(", in ranges, to cp rank {cp}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two groups, the second with a window; tokens dealt by page to two ranks.
    fn side() -> Descriptor {
        let component = |group: &str| {
            json!({ "name": group, "heads": 1, "dim": 8, "pool": group, "group": group,
                    "format": { "element": "bf16" }, "layout": "[layer] page slot dim" })
        };
        let document = json!({
            "version": 1, "model": { "layers": 4 }, "page_slots": 4,
            "parallel": { "cp": 2, "cp_unit": "page" },
            "groups": [
                { "name": "full", "layers": [0, 2] },
                { "name": "window", "layers": [2, 4], "window": 8 },
            ],
            "components": [component("full"), component("window")],
            "ranks": [{ "rank": 0, "pages": 9 }, { "rank": 1, "pages": 9 }],
        });
        Descriptor::from_json(&document.to_string()).unwrap()
    }

    fn request() -> Request {
        let mut request = Request::new(&side(), 32);
        request.give(0..2, 0, &[8, 1, 7, 2]).unwrap();
        request.give(0..2, 1, &[4]).unwrap();
        request
    }

    #[test]
    fn every_field_is_checked_and_named_with_both_values() {
        let side = side();
        let check = |request: &Request, role| request.check(&side, role, 0..2);
        check(&request(), Role::Consumer).unwrap();
        let says = |change: &dyn Fn(&mut Request), text: &str| {
            let mut request = request();
            change(&mut request);
            let error = check(&request, Role::Consumer).unwrap_err();
            assert_eq!(error.to_string(), text);
        };
        says(
            &|r| r.tokens = 0,
            "request.tokens: 0 is not between 1 and 1073741824",
        );
        says(
            &|r| r.tokens = u32::MAX,
            "request.tokens: 4294967295 is not between 1 and 1073741824",
        );
        says(
            &|r| r.first = 32,
            "request.first: 32 is not between 0 and 31",
        );
        let layers = "are not layers within 0..4, ascending and each once; there is at least one";
        for (some, text) in [
            (Layers::Between(2..5), "layers 2..5"),
            (Layers::Between(2..2), "layers 2..2"),
            (Layers::Only(vec![]), "layers []"),
            (Layers::Only(vec![1, 1]), "layers [1, 1]"),
            (Layers::Only(vec![3, 4]), "layers [3, 4]"),
        ] {
            let text = format!("request.layers: {text} {layers}");
            says(&|r| r.layers = some.clone(), &text);
        }
        says(
            &|r| r.give(1..2, 0, &[8, 1, 7, 2, 3]).unwrap(),
            "ranks[1].request_pages.full: lists 5 pages; 16 tokens of 32, dealt by page to cp rank 1 in pages of 4 need 4",
        );
        says(
            &|r| r.give(0..2, 1, &[]).unwrap(),
            "ranks[0].request_pages.window: lists 0 pages; 4 tokens of 32, dealt by page to cp rank 0 in pages of 4 need 1",
        );
        says(
            &|r| r.give(0..1, 0, &[8, 1, 9, 2]).unwrap(),
            "ranks[0].request_pages.full: page 9 is out of range: the rank has pages 0..9",
        );
        says(
            &|r| r.give(0..1, 0, &[8, 1, 8, 2]).unwrap(),
            "ranks[0].request_pages.full: page 8 is listed twice; its slots would be written by two tokens",
        );
        let error = request().give(1..3, 0, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "ranks: rank 2 is extra: the side has ranks 0..2"
        );
        let error = request().give(1..2, 2, &[]).unwrap_err();
        assert_eq!(
            error.problem,
            Problem::NoGroup {
                group: "2".into(),
                has: "groups 0..2".into()
            }
        );
        let error = request().check(&side, Role::Consumer, 0..3).unwrap_err();
        assert_eq!(error.problem, Problem::NoRank { rank: 2, ranks: 2 });
    }

    #[test]
    fn a_page_may_be_read_twice_and_one_that_is_kept_is_not_written() {
        let side = side();
        let check = |pages: &[u32], first: u32, role| {
            let mut request = request();
            request.give(0..2, 0, pages).unwrap();
            request.first = first;
            request
                .check(&side, role, 0..2)
                .map_err(|error| error.problem)
        };
        let twice = Err(Problem::Twice { page: 8 });
        assert_eq!(check(&[8, 8, 7, 2], 0, Role::Producer), Ok(()));
        assert_eq!(check(&[8, 8, 7, 2], 0, Role::Consumer), twice);
        // The first two pages of both ranks hold tokens 0..16.
        assert_eq!(check(&[8, 8, 7, 2], 16, Role::Consumer), Ok(()));
        assert_eq!(check(&[8, 8, 7, 2], 12, Role::Consumer), twice);
        assert_eq!(check(&[8, 1, 8, 2], 16, Role::Consumer), twice);
    }

    #[test]
    fn only_ranks_that_are_asked_for_need_their_pages() {
        let side = side();
        let mut request = Request::new(&side, 32);
        request.give(1..2, 0, &[8, 1, 7, 2]).unwrap();
        request.give(1..2, 1, &[4]).unwrap();
        assert_eq!(request.check(&side, Role::Consumer, 1..2), Ok(()));
        let error = request.check(&side, Role::Consumer, 0..2).unwrap_err();
        assert!(matches!(error.at, At::Pages { rank: 0, .. }), "{error}");
        assert_eq!(request.pages(1, 0), [8, 1, 7, 2]);
        assert_eq!(
            (request.pages(0, 0).len(), request.pages(9, 9).len()),
            (0, 0)
        );
        assert_eq!(request.pages(0, 2).len(), 0);
    }
}
