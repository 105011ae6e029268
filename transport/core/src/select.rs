//! Choosing how to reach a peer: a pure function that explains itself.

use std::fmt;

use moai_memory::MemoryKind;
use thiserror::Error;

use crate::{Address, Capabilities, Obstacle, Operation, Reach};

/// One way to reach a peer: an address of the peer, and the interface of ours that could connect to it.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)] // A question's terms.
pub struct Candidate<'a> {
    /// The peer's address; its provider is the interface's.
    pub address: &'a Address,
    /// What our interface can do; the peer's can do the same.
    pub capabilities: &'a Capabilities,
    /// Why it cannot be reached from here after all: what is known without trying, or an attempt that failed.
    pub obstacle: Option<Obstacle>,
}

/// What a path is wanted for, and what may be chosen.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs)] // A question's terms.
pub struct Wanted<'a> {
    /// Kind of memory on our side.
    pub local: MemoryKind,
    /// Kind of memory on the peer's side.
    pub remote: MemoryKind,
    /// Providers that may be used, best first; `None` is any, in the order of what they can do.
    pub allowed: Option<&'a [String]>,
    /// Providers of which it must be one.
    pub required: Option<&'a [String]>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// Index of the candidate.
    pub index: usize,
    /// Why this one, and why none of those that would have been better.
    pub why: String,
    /// Whether a better one leads there that nobody had ruled out, and it could not be had.
    pub is_fallback: bool,
}

/// No candidate will do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no path to the peer: {}; {way_out}", .rejected.join("; "))]
#[non_exhaustive]
pub struct NoPath {
    /// Every candidate, and why not.
    pub rejected: Vec<String>,
    /// What would help.
    pub way_out: String,
}

/// Chooses among `candidates`.
///
/// Those that are not allowed, not required where something is, or that have an obstacle are out; so are those that
/// cannot send from or to the memory. Of the others, the one that the order of `allowed` names first, and without an
/// order the best: one that maps the peer's memory before one whose puts and gets cost the peer nothing, before
/// any other; direct before staged; and the earlier of equals.
///
/// What is better and fails makes the choice a fallback; what is only [elsewhere](Obstacle::Elsewhere) does not.
///
/// # Errors
///
/// [`NoPath`] with a sentence for every candidate.
pub fn select(wanted: &Wanted<'_>, candidates: &[Candidate<'_>]) -> Result<Choice, NoPath> {
    let mut rejected: Vec<(Rank, Out)> = Vec::new();
    let mut best: Option<(usize, usize, Rank)> = None;
    for (index, candidate) in candidates.iter().enumerate() {
        let name = candidate.address.provider();
        let rank = Rank::of(wanted, candidate.capabilities);
        match order(wanted, candidate, rank) {
            Err(out) => rejected.push((rank, out.of(name))),
            Ok(place) => {
                let better = best.is_none_or(|(_, p, r)| place < p || (place == p && rank > r));
                if better {
                    best = Some((index, place, rank));
                }
            }
        }
    }
    let Some((index, _, rank)) = best else {
        let mut reasons: Vec<_> = rejected.into_iter().map(|(_, out)| out.reason).collect();
        if reasons.is_empty() {
            reasons.push("it has no address of a provider that is open here".to_owned());
        }
        let way_out = match (wanted.required, wanted.allowed) {
            (Some(required), _) => format!(
                "remove the cause, or require another path than {}",
                required.join(",")
            ),
            (None, Some(allowed)) => {
                format!("allow more transports than {}", allowed.join(","))
            }
            (None, None) => "remove the cause, or let the peer listen in another way".to_owned(),
        };
        return Err(NoPath {
            rejected: reasons,
            way_out,
        });
    };
    let missed = || {
        let better = rejected.iter().filter(|(missed, _)| *missed > rank);
        better.map(|(_, out)| out)
    };
    let reasons = |elsewhere: bool| {
        let missed = missed().filter(|out| (out.because == Because::Elsewhere) == elsewhere);
        let reasons: Vec<_> = missed.map(|out| out.reason.as_str()).collect();
        reasons.join("; ")
    };
    let mut why = rank.to_string();
    for (what, reasons) in [
        ("slower than could be", reasons(false)),
        ("out of reach", reasons(true)),
    ] {
        if !reasons.is_empty() {
            why += &format!("; {what}: {reasons}");
        }
    }
    Ok(Choice {
        index,
        why,
        is_fallback: missed().any(|out| out.because == Because::Fails),
    })
}

/// Why a candidate is out.
struct Out {
    reason: String,
    because: Because,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Because {
    /// The caller wants it so.
    Wish,
    /// It does not lead there.
    Elsewhere,
    /// It should do, and does not.
    Fails,
}

impl Out {
    fn of(self, name: &str) -> Self {
        Self {
            reason: format!("{name}: {}", self.reason),
            ..self
        }
    }
}

/// Place in the order of what is allowed, or why it is out.
fn order(wanted: &Wanted<'_>, candidate: &Candidate<'_>, rank: Rank) -> Result<usize, Out> {
    let wish = |names: &[String], what| Out {
        reason: format!("{} is {what}", names.join(",")),
        because: Because::Wish,
    };
    let fact = |reason, because| Out { reason, because };
    let name = candidate.address.provider();
    let place = |list: &[String]| list.iter().position(|other| other == name);
    if let Some(required) = wanted.required
        && place(required).is_none()
    {
        return Err(wish(required, "required"));
    }
    let place = match wanted.allowed {
        None => 0,
        Some(allowed) => place(allowed).ok_or_else(|| wish(allowed, "what is allowed"))?,
    };
    if let Some(obstacle) = &candidate.obstacle {
        let because = match obstacle {
            Obstacle::Elsewhere(_) => Because::Elsewhere,
            Obstacle::Refused(_) => Because::Fails,
        };
        return Err(fact(obstacle.to_string(), because));
    }
    if rank.send == Reach::No {
        let reason = format!(
            "it cannot send from {} to {} memory",
            wanted.local, wanted.remote
        );
        return Err(fact(reason, Because::Fails));
    }
    Ok(place)
}

/// How good a way is; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    maps: bool,
    one_sided: bool,
    send: Reach,
}

impl Rank {
    fn of(wanted: &Wanted<'_>, can: &Capabilities) -> Self {
        let both = |operation| {
            let reach = |kind| can.reach(operation, kind);
            reach(wanted.local).min(reach(wanted.remote))
        };
        Self {
            maps: can.reach(Operation::Map, wanted.remote) != Reach::No,
            one_sided: can.one_sided && both(Operation::Get) != Reach::No,
            send: both(Operation::Send),
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.maps, self.one_sided) {
            (true, _) => "the peer's memory can be mapped",
            (false, true) => "the peer's memory can be reached without its doing",
            (false, false) => "both processes move the bytes",
        })?;
        if self.send == Reach::Staged {
            f.write_str(", staged in host memory")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can(map: bool, one_sided: bool) -> Capabilities {
        let kind = MemoryKind::Host;
        let mut reach = vec![
            (Operation::Send, kind, Reach::Direct),
            (Operation::Get, kind, Reach::Direct),
        ];
        if map {
            reach.push((Operation::Map, kind, Reach::Direct));
        }
        Capabilities {
            reach,
            one_sided,
            max_message: 1,
            max_batch: 1,
            max_operation: 1,
            lanes: 1,
            encrypted: false,
        }
    }

    fn elsewhere(reason: &str) -> Obstacle {
        Obstacle::Elsewhere(reason.to_owned())
    }

    fn refused(reason: &str) -> Obstacle {
        Obstacle::Refused(reason.to_owned())
    }

    fn choose(
        obstacle: Option<Obstacle>,
        allowed: Option<&[&str]>,
        required: Option<&[&str]>,
    ) -> Result<(&'static str, String, bool), String> {
        let (tcp, shm) = ("tcp:h:1".parse().unwrap(), "shm:x".parse().unwrap());
        let (of_tcp, of_shm) = (can(false, false), can(true, true));
        let candidates = [
            Candidate {
                address: &tcp,
                capabilities: &of_tcp,
                obstacle: None,
            },
            Candidate {
                address: &shm,
                capabilities: &of_shm,
                obstacle,
            },
        ];
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let (allowed, required) = (allowed.map(owned), required.map(owned));
        let wanted = Wanted {
            local: MemoryKind::Host,
            remote: MemoryKind::Host,
            allowed: allowed.as_deref(),
            required: required.as_deref(),
        };
        select(&wanted, &candidates)
            .map(|choice| (["tcp", "shm"][choice.index], choice.why, choice.is_fallback))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_best_that_can_be_had_is_chosen_and_says_why() {
        let why = |text: &str| text.to_owned();
        assert_eq!(
            choose(None, None, None),
            Ok(("shm", why("the peer's memory can be mapped"), false))
        );
        assert_eq!(
            choose(Some(refused("nobody listens")), None, None),
            Ok((
                "tcp",
                why("both processes move the bytes; slower than could be: shm: nobody listens"),
                true
            ))
        );
        assert_eq!(
            choose(Some(elsewhere("it is on another host")), None, None),
            Ok((
                "tcp",
                why("both processes move the bytes; out of reach: shm: it is on another host"),
                false
            ))
        );
        assert_eq!(
            choose(None, Some(&["tcp"]), None),
            Ok((
                "tcp",
                why(
                    "both processes move the bytes; slower than could be: shm: tcp is what is allowed"
                ),
                false
            ))
        );
        assert_eq!(choose(None, Some(&["tcp", "shm"]), None).unwrap().0, "tcp");
        assert_eq!(choose(None, None, Some(&["shm"])).unwrap().0, "shm");
    }

    #[test]
    fn without_a_path_every_candidate_is_named_and_a_way_out() {
        assert_eq!(
            choose(Some(elsewhere("another host")), None, Some(&["shm"])),
            Err(
                "no path to the peer: tcp: shm is required; shm: another host; \
                remove the cause, or require another path than shm"
                    .to_owned()
            )
        );
        assert_eq!(
            choose(None, Some(&["verbs"]), None),
            Err(
                "no path to the peer: tcp: verbs is what is allowed; shm: verbs is what is allowed; \
                allow more transports than verbs"
                    .to_owned()
            )
        );
        let wanted = Wanted {
            local: MemoryKind::Host,
            remote: MemoryKind::Host,
            allowed: None,
            required: None,
        };
        assert!(
            select(&wanted, &[])
                .unwrap_err()
                .to_string()
                .contains("no address")
        );
    }
}
