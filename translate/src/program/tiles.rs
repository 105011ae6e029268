//! A box cut into tiles that stay in the caches.

use super::{Place, pieces::View};

/// Heads and tokens of a tile, counted within the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    pub(super) head: u32,
    pub(super) heads: u32,
    pub(super) token: u32,
    pub(super) tokens: u32,
    /// Where the tile after this starts, as (head, token).
    pub(super) next: Option<(u32, u32)>,
}

/// The tiles of a box: all heads of some tokens, then all heads of the next tokens.
#[derive(Debug)]
pub(super) struct Tiles<'a> {
    pub(super) heads: u32,
    pub(super) tokens: u32,
    pub(super) most_heads: u32,
    pub(super) most_tokens: u32,
    /// The side at whose pages tiles end.
    pub(super) pages: &'a View,
    pub(super) place: Place<'a>,
    /// The tile that comes next.
    pub(super) at: Option<(u32, u32)>,
}

impl Iterator for Tiles<'_> {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        let (head, token) = self.at?;
        let heads = self.most_heads.min(self.heads - head);
        let room = self.pages.left(self.place, token);
        let tokens = self.most_tokens.min(room).min(self.tokens - token);
        self.at = if head + heads < self.heads {
            Some((head + heads, token))
        } else if token + tokens < self.tokens {
            Some((0, token + tokens))
        } else {
            None
        };
        Some(Tile {
            head,
            heads,
            token,
            tokens,
            next: self.at,
        })
    }
}
