//! A request of two sides that agreed.

use std::{ops::Range, sync::Arc};

use sha2::{Digest, Sha256};

use super::Agreed;
use crate::{
    descriptor::Descriptor,
    digest::{Coverage, DigestKey},
    limits,
    negotiate::{Obstacles, Refusal, Role},
    plan::{Chunks, Pair},
    request::{Request, RequestError},
};

/// A request that both sides, having agreed, want moved: all that a transfer needs to know.
///
/// A side knows the pages of its own ranks, and of the other's only what both must say alike. Where one process
/// addresses the memory of both, it knows all pages.
#[derive(Clone, Debug)]
pub struct Requested {
    agreed: Arc<Agreed>,
    producer: Request,
    consumer: Request,
}

impl Requested {
    /// A request of which the pages of all ranks of both sides are known.
    ///
    /// # Errors
    ///
    /// [`Refusal`], if the two do not speak of the same, or a side's request is not one of it.
    pub fn new(agreed: Arc<Agreed>, producer: Request, consumer: Request) -> Result<Self, Refusal> {
        let mut obstacles = Obstacles::default();
        compare(&producer, &consumer, &mut obstacles);
        for (role, request) in [(Role::Producer, &producer), (Role::Consumer, &consumer)] {
            let side = agreed.side(role);
            check(
                request,
                side,
                role,
                0..side.ranks.len() as u32,
                &mut obstacles,
            );
        }
        obstacles.end()?;
        let this = Self {
            agreed,
            producer,
            consumer,
        };
        this.fits(|_| true)?;
        Ok(this)
    }

    /// A request of which only the pages of some ranks of `role`'s side are known: those that this process moves.
    ///
    /// # Errors
    ///
    /// [`Refusal`], if the request is not one of its side, or what these ranks move is too much to be moved at once.
    pub fn of(
        agreed: Arc<Agreed>,
        role: Role,
        request: Request,
        ranks: Range<u32>,
    ) -> Result<Self, Refusal> {
        let mut obstacles = Obstacles::default();
        check(
            &request,
            agreed.side(role),
            role,
            ranks.clone(),
            &mut obstacles,
        );
        obstacles.end()?;
        let other = |side: &Descriptor| {
            let mut other = Request::new(side, request.tokens);
            other.first = request.first;
            other.layers = request.layers.clone();
            other.coverage = request.coverage;
            other
        };
        let (producer, consumer) = match role {
            Role::Producer => {
                let consumer = other(&agreed.consumer);
                (request, consumer)
            }
            Role::Consumer => (other(&agreed.producer), request),
        };
        let this = Self {
            agreed,
            producer,
            consumer,
        };
        this.fits(|pair| {
            ranks.contains(match role {
                Role::Producer => &pair.source,
                Role::Consumer => &pair.target,
            })
        })?;
        Ok(this)
    }

    /// The same, with the pages of one of the producer's ranks as that rank has listed them: of all groups, one after
    /// another.
    ///
    /// # Errors
    ///
    /// [`RequestError`], if they are not what its side has for the request.
    pub fn lent(&self, rank: u32, mut pages: &[u32]) -> Result<Self, RequestError> {
        let mut this = self.clone();
        let side = &this.agreed.producer;
        for group in 0..side.groups.len() {
            let needed = this.producer.pages_needed(side, rank, group) as usize;
            let (own, rest) = pages.split_at(needed.min(pages.len()));
            pages = rest;
            this.producer.give(rank..rank + 1, group, own)?;
        }
        this.producer.check(side, Role::Producer, rank..rank + 1)?;
        Ok(this)
    }

    /// How many pages the producer's rank has of the request, in all groups.
    #[must_use]
    pub fn lent_pages(&self, rank: u32) -> u64 {
        let side = &self.agreed.producer;
        let needed = |group| self.producer.pages_needed(side, rank, group);
        (0..side.groups.len()).map(needed).sum()
    }

    /// Negotiates for one request: two descriptions with what is to be moved between them.
    ///
    /// # Errors
    ///
    /// [`Refusal`], with every obstacle of sides and requests.
    pub fn agree(
        (producer, its): (Descriptor, Request),
        (consumer, own): (Descriptor, Request),
    ) -> Result<Self, Refusal> {
        match Agreed::new(producer, consumer) {
            Ok(agreed) => Self::new(Arc::new(agreed), its, own),
            Err(refusal) => {
                let mut obstacles = Obstacles::default();
                obstacles.extend(refusal);
                compare(&its, &own, &mut obstacles);
                Err(obstacles.end().expect_err("there are those of the sides"))
            }
        }
    }

    /// What both sides know of each other.
    #[must_use]
    pub fn agreed(&self) -> &Arc<Agreed> {
        &self.agreed
    }

    /// What the producer says of it.
    #[must_use]
    pub fn producer(&self) -> &Request {
        &self.producer
    }

    /// What the consumer says of it.
    #[must_use]
    pub fn consumer(&self) -> &Request {
        &self.consumer
    }

    /// Its tokens.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.consumer.tokens
    }

    /// A key for digests of rows of up to `row_bytes` bytes, as much as is wanted of them.
    #[must_use]
    pub fn digest_key(&self, key: u64, row_bytes: usize) -> DigestKey {
        let key = DigestKey::new(key, row_bytes).over(self.tokens());
        key.covering(self.coverage())
    }

    /// How much of it is digested.
    #[must_use]
    pub fn coverage(&self) -> Coverage {
        self.consumer.coverage
    }

    /// What goes between two ranks, in pieces.
    #[must_use]
    pub fn chunks(&self, pair: &Pair) -> Chunks {
        let mut chunks = Chunks::default();
        self.chunks_into(pair, &mut chunks);
        chunks
    }

    /// As [`chunks`](Self::chunks), into what is used again.
    pub fn chunks_into(&self, pair: &Pair, chunks: &mut Chunks) {
        let agreement = &self.agreed.agreement;
        agreement.chunks_into(self.agreed.sides(), pair, &self.consumer, chunks);
    }

    /// Identifies the agreement and what is moved: equal on both sides if and only if both mean the same.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"moai request 1\0");
        hash.update(self.agreed.agreement.digest());
        let Request {
            tokens,
            first,
            layers,
            coverage,
            ..
        } = &self.consumer;
        // `Debug` of these types is a complete and deterministic listing of their fields.
        hash.update(format!("{tokens} {first} {layers:?} {coverage:?}"));
        hash.finalize().into()
    }

    /// Neither chunks nor sums are more than can be kept.
    fn fits(&self, moves: impl Fn(&Pair) -> bool) -> Result<(), Refusal> {
        let mut obstacles = Obstacles::default();
        let (mut total, mut parts, mut chunks) = (0, 0, Chunks::default());
        let pairs = self.agreed.agreement.pairs.iter();
        for pair in pairs.filter(|pair| moves(pair)) {
            self.chunks_into(pair, &mut chunks);
            total += chunks.len() as u64;
            parts = parts.max(chunks.parts());
        }
        if total > limits::MAX_CHUNKS {
            obstacles.add(
                "request.tokens",
                format!("{} tokens make {total} chunks", self.tokens()),
                format!("{} at most", limits::MAX_CHUNKS),
                "move a request this long in parts",
            );
        }
        if parts > limits::MAX_STEP_LAYERS {
            obstacles.add(
                "request.layers",
                format!(
                    "{} make {parts} sums of digests between two ranks",
                    self.consumer.layers
                ),
                format!("{} at most", limits::MAX_STEP_LAYERS),
                "move the layers in parts",
            );
        }
        obstacles.end()
    }
}

/// A side's request must be one of it.
fn check(
    request: &Request,
    side: &Descriptor,
    role: Role,
    ranks: Range<u32>,
    obstacles: &mut Obstacles,
) {
    if let Err(RequestError { at, problem }) = request.check(side, role, ranks) {
        let (a, b) = match role {
            Role::Producer => (problem.to_string(), "not compared".to_owned()),
            Role::Consumer => ("not compared".to_owned(), problem.to_string()),
        };
        obstacles.add(
            at.to_string(),
            a,
            b,
            format!("the {role} must give the request as it has it"),
        );
    }
}

/// Both sides must speak of the same.
fn compare(producer: &Request, consumer: &Request, obstacles: &mut Obstacles) {
    let same = "both sides must speak of the same request";
    obstacles.compare("request.tokens", producer.tokens, consumer.tokens, same);
    obstacles.compare("request.first", producer.first, consumer.first, same);
    let layers = [producer, consumer].map(|request| request.layers.to_string());
    obstacles.compare("request.layers", &layers[0], &layers[1], same);
    let coverage = [producer.coverage, consumer.coverage];
    obstacles.compare(
        "request.digest",
        coverage[0],
        coverage[1],
        "both sides must digest alike",
    );
}
