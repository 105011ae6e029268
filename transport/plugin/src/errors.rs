//! Errors and ends of operations and connections, as numbers and back.

use std::error::Error as _;
use std::io;

use moai_memory::MemoryKind;
use moai_transport::{
    Address, Closed, Error, Fault, Operation, PeerId, PiecesError, Refusal, RegistrationId,
    RemoteKey,
};

use crate::abi;
use crate::text::{Said, fail};

/// What a call was about, from which an error is made again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    pub(crate) provider: &'static str,
    pub(crate) call: &'static str,
    pub(crate) peer: Option<PeerId>,
    pub(crate) registration: Option<RegistrationId>,
    pub(crate) address: Option<&'a Address>,
    pub(crate) key: Option<&'a [u8]>,
    /// What is too large, if something is.
    pub(crate) what: &'static str,
}

const OPERATIONS: [Operation; 4] = [
    Operation::Put,
    Operation::Get,
    Operation::Send,
    Operation::Map,
];

pub(crate) fn operation_code(operation: Operation) -> Option<usize> {
    OPERATIONS.iter().position(|other| *other == operation)
}

pub(crate) fn operation(code: u64) -> Option<Operation> {
    OPERATIONS.get(usize::try_from(code).ok()?).copied()
}

/// An error of this side for the other.
///
/// # Safety
///
/// As for [`fail`].
pub(crate) unsafe fn tell(to: *mut abi::Error, error: &Error) -> abi::Status {
    let with_cause = || match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    let (status, detail, text): (_, Vec<u64>, String) = match error {
        Error::NoSuchPeer { .. } => (abi::E_NO_SUCH_PEER, vec![], String::new()),
        Error::Finishing { .. } => (abi::E_FINISHING, vec![], String::new()),
        Error::TooLarge { bytes, limit, .. } => {
            (abi::E_TOO_LARGE, vec![*bytes, *limit], String::new())
        }
        Error::TooManyPeers { limit } => {
            (abi::E_TOO_MANY_PEERS, vec![*limit as u64], String::new())
        }
        Error::TooManyRegistrations { limit } => (
            abi::E_TOO_MANY_REGISTRATIONS,
            vec![*limit as u64],
            String::new(),
        ),
        Error::TooManyImports { .. } => (abi::E_TOO_MANY_IMPORTS, vec![], String::new()),
        Error::NotRegistered { .. } => (abi::E_NOT_REGISTERED, vec![], String::new()),
        Error::NotLent { region } => (abi::E_NOT_LENT, vec![u64::from(*region)], String::new()),
        Error::NotImported { region } => {
            (abi::E_NOT_IMPORTED, vec![u64::from(*region)], String::new())
        }
        Error::Key(cause) => (abi::E_KEY, vec![], cause.to_string()),
        Error::Refused(refusal) => (
            abi::E_REFUSED,
            vec![u64::from(refusal.code())],
            String::new(),
        ),
        Error::Pieces { side, cause } => {
            let side = u64::from(*side == "remote");
            let [which, region, a, b, c] = pieces_numbers(cause);
            (
                abi::E_PIECES,
                vec![side, which, region, a, b, c],
                cause.to_string(),
            )
        }
        Error::Unequal { local, remote } => (abi::E_UNEQUAL, vec![*local, *remote], String::new()),
        Error::Unsupported {
            operation,
            kind,
            reason,
            ..
        } => {
            let operation = operation_code(*operation).unwrap_or(OPERATIONS.len()) as u64;
            let detail = vec![operation, u64::from(kind.code())];
            (abi::E_UNSUPPORTED, detail, reason.clone())
        }
        Error::Unreachable { reason, .. } => (abi::E_UNREACHABLE, vec![], reason.clone()),
        Error::Unadvertised { address, .. } => (abi::E_UNADVERTISED, vec![], address.to_string()),
        Error::Os { call, cause } => match cause.raw_os_error() {
            Some(code) => (abi::E_SYSTEM, vec![code as u64], (*call).to_owned()),
            None => (abi::E_FAILED, vec![], error.to_string()),
        },
        _ => (abi::E_FAILED, vec![], with_cause()),
    };
    // SAFETY: by contract.
    unsafe { fail(to, status, &detail, &text) }
}

/// An error of the other side. One that says what cannot be is one of the provider.
pub(crate) fn heard(status: abi::Status, said: &Said, about: &About<'_>) -> Error {
    known(status, said, about).unwrap_or_else(|| {
        let sentence = said.sentence();
        let problem = match (status, sentence.is_empty()) {
            (abi::E_FAILED, false) => sentence,
            (_, true) => format!("status {status}, without a reason"),
            (_, false) => format!("status {status}: {sentence}"),
        };
        Error::Provider {
            provider: about.provider,
            call: about.call,
            problem,
        }
    })
}

fn known(status: abi::Status, said: &Said, about: &About<'_>) -> Option<Error> {
    let detail = said.detail();
    let number = |at: usize| u32::try_from(detail[at]).ok();
    let limit = || usize::try_from(detail[0]).ok();
    let provider = about.provider;
    Some(match status {
        abi::E_NO_SUCH_PEER => Error::NoSuchPeer { peer: about.peer? },
        abi::E_FINISHING => Error::Finishing { peer: about.peer? },
        abi::E_TOO_LARGE => Error::TooLarge {
            what: about.what,
            bytes: detail[0],
            limit: detail[1],
        },
        abi::E_TOO_MANY_PEERS => Error::TooManyPeers { limit: limit()? },
        abi::E_TOO_MANY_REGISTRATIONS => Error::TooManyRegistrations { limit: limit()? },
        abi::E_TOO_MANY_IMPORTS => Error::TooManyImports { peer: about.peer? },
        abi::E_NOT_REGISTERED => {
            let id = about.registration?;
            Error::NotRegistered {
                slot: id.slot(),
                generation: id.generation(),
            }
        }
        abi::E_NOT_LENT => Error::NotLent { region: number(0)? },
        abi::E_NOT_IMPORTED => Error::NotImported { region: number(0)? },
        // What is wrong with it can be seen here as well; keys of another form have a sentence.
        abi::E_KEY => Error::Key(RemoteKey::decode(about.key?).err()?),
        abi::E_REFUSED => Error::Refused(refusal(detail[0])?),
        abi::E_PIECES => Error::Pieces {
            side: match detail[0] {
                0 => "local",
                1 => "remote",
                _ => return None,
            },
            cause: pieces_error(&detail[1..])?,
        },
        abi::E_UNEQUAL => Error::Unequal {
            local: detail[0],
            remote: detail[1],
        },
        abi::E_UNSUPPORTED => Error::Unsupported {
            provider,
            operation: operation(detail[0])?,
            kind: MemoryKind::from_code(u8::try_from(detail[1]).ok()?)?,
            reason: said.sentence(),
        },
        abi::E_UNREACHABLE => Error::Unreachable {
            provider,
            address: about.address?.clone(),
            reason: said.sentence(),
        },
        abi::E_UNADVERTISED => Error::Unadvertised {
            provider,
            address: said.sentence().parse().ok()?,
        },
        abi::E_SYSTEM => {
            let cause = io::Error::from_raw_os_error(i32::try_from(detail[0]).ok()?);
            let call = said.sentence();
            if call.is_empty() {
                Error::Os {
                    call: about.call,
                    cause,
                }
            } else {
                Error::Provider {
                    provider,
                    call: about.call,
                    problem: format!("{call} failed: {cause}"),
                }
            }
        }
        _ => return None,
    })
}

fn refusal(code: u64) -> Option<Refusal> {
    Refusal::from_code(u8::try_from(code).ok()?)
}

fn pieces_numbers(error: &PiecesError) -> [u64; 5] {
    match *error {
        PiecesError::Empty {
            region,
            bytes,
            count,
        } => [
            abi::PIECES_EMPTY,
            region.into(),
            bytes.into(),
            count.into(),
            0,
        ],
        PiecesError::Overlap {
            region,
            bytes,
            stride,
        } => [abi::PIECES_OVERLAP, region.into(), bytes.into(), stride, 0],
        PiecesError::OutOfBounds {
            region,
            offset,
            reach,
            len,
        } => [abi::PIECES_OUT_OF_BOUNDS, region.into(), offset, reach, len],
        PiecesError::TooLarge { region } => [abi::PIECES_TOO_LARGE, region.into(), 0, 0, 0],
        _ => [0; 5],
    }
}

fn pieces_error(numbers: &[u64]) -> Option<PiecesError> {
    let number = |at: usize| u32::try_from(*numbers.get(at)?).ok();
    let region = number(1)?;
    Some(match numbers[0] {
        abi::PIECES_EMPTY => PiecesError::Empty {
            region,
            bytes: number(2)?,
            count: number(3)?,
        },
        abi::PIECES_OVERLAP => PiecesError::Overlap {
            region,
            bytes: number(2)?,
            stride: numbers[3],
        },
        abi::PIECES_OUT_OF_BOUNDS => PiecesError::OutOfBounds {
            region,
            offset: numbers[2],
            reach: numbers[3],
            len: numbers[4],
        },
        abi::PIECES_TOO_LARGE => PiecesError::TooLarge { region },
        _ => return None,
    })
}

/// How an operation ended, as two numbers.
pub(crate) fn outcome_numbers(outcome: Result<(), Fault>) -> (u32, i32) {
    match outcome {
        Ok(()) => (abi::ENDED_WELL, 0),
        Err(Fault::Refused(refusal)) => (abi::ENDED_REFUSED, refusal.code().into()),
        Err(Fault::Copy) => (abi::ENDED_COPY, 0),
        Err(Fault::Access { code }) => (abi::ENDED_ACCESS, code),
        Err(_) => (abi::ENDED_PEER_LOST, 0),
    }
}

/// And back; `None` if there is no such end.
pub(crate) fn outcome(number: u32, code: i32) -> Option<Result<(), Fault>> {
    Some(match number {
        abi::ENDED_WELL => Ok(()),
        abi::ENDED_PEER_LOST => Err(Fault::PeerLost),
        abi::ENDED_REFUSED => Err(Fault::Refused(refusal(u64::try_from(code).ok()?)?)),
        abi::ENDED_COPY => Err(Fault::Copy),
        abi::ENDED_ACCESS => Err(Fault::Access { code }),
        _ => return None,
    })
}

/// Frames that can be cut short.
const FRAMES: [&str; 3] = ["header", "message", "batch"];

/// Why a connection ended, as numbers and a text.
pub(crate) fn closed_numbers(why: &Closed) -> (u32, [u64; 2], String) {
    match why {
        Closed::ByPeer => (abi::CLOSED_BY_PEER, [0; 2], String::new()),
        Closed::Truncated {
            what,
            received,
            expected,
        } => (
            abi::CLOSED_TRUNCATED,
            [*received, *expected],
            (*what).to_owned(),
        ),
        Closed::Rejected(reason) => (abi::CLOSED_REJECTED, [0; 2], reason.clone()),
        Closed::Io(error) => {
            let code = error.raw_os_error().unwrap_or(0);
            (abi::CLOSED_IO, [code as u64, 0], error.to_string())
        }
        Closed::Idle { limit_ms } => (abi::CLOSED_IDLE, [*limit_ms, 0], String::new()),
        Closed::ByUs => (abi::CLOSED_BY_US, [0; 2], String::new()),
        other => {
            let text = match other.source() {
                Some(cause) => format!("{other}: {cause}"),
                None => other.to_string(),
            };
            (abi::CLOSED_OTHER, [0; 2], text)
        }
    }
}

/// And back.
pub(crate) fn closed(reason: u32, [a, b]: [u64; 2], text: &str) -> Closed {
    match reason {
        abi::CLOSED_BY_PEER => Closed::ByPeer,
        abi::CLOSED_TRUNCATED => Closed::Truncated {
            what: FRAMES
                .into_iter()
                .find(|one| *one == text)
                .unwrap_or("frame"),
            received: a,
            expected: b,
        },
        abi::CLOSED_REJECTED => Closed::Rejected(text.to_owned()),
        abi::CLOSED_IO => Closed::Io(match i32::try_from(a) {
            Ok(code) if code > 0 => io::Error::from_raw_os_error(code),
            _ => io::Error::other(text.to_owned()),
        }),
        abi::CLOSED_IDLE => Closed::Idle { limit_ms: a },
        abi::CLOSED_BY_US => Closed::ByUs,
        abi::CLOSED_OTHER if !text.is_empty() => Closed::Provider(text.to_owned()),
        other => Closed::Provider(format!("reason {other}, without a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossed(error: &Error, about: &About<'_>) -> Error {
        let mut said = Said::new();
        // SAFETY: an error with room for its text.
        let status = unsafe { tell(said.clean(), error) };
        heard(status, &said, about)
    }

    #[test]
    fn errors_are_the_same_on_the_other_side() {
        let address: Address = "tcp:a:1".parse().unwrap();
        let about = About {
            provider: "x",
            call: "put",
            peer: Some(PeerId::new(3, 4)),
            registration: Some(RegistrationId::new(5, 6)),
            address: Some(&address),
            key: Some(b"no key"),
            what: "operation",
        };
        let peer = PeerId::new(3, 4);
        let kind = MemoryKind::Sim;
        let pieces = |side, cause| Error::Pieces { side, cause };
        for error in [
            Error::NoSuchPeer { peer },
            Error::Finishing { peer },
            Error::TooLarge {
                what: "operation",
                bytes: 9,
                limit: 8,
            },
            Error::TooManyPeers { limit: 7 },
            Error::TooManyRegistrations { limit: 7 },
            Error::TooManyImports { peer },
            Error::NotRegistered {
                slot: 5,
                generation: 6,
            },
            Error::NotLent { region: 7 },
            Error::NotImported { region: 7 },
            Error::Key(RemoteKey::decode(b"no key").unwrap_err()),
            Error::Refused(Refusal::Rights),
            pieces(
                "local",
                PiecesError::Empty {
                    region: 1,
                    bytes: 2,
                    count: 3,
                },
            ),
            pieces(
                "remote",
                PiecesError::Overlap {
                    region: 1,
                    bytes: 2,
                    stride: 3,
                },
            ),
            pieces(
                "remote",
                PiecesError::OutOfBounds {
                    region: 1,
                    offset: 2,
                    reach: 3,
                    len: u64::MAX,
                },
            ),
            pieces("local", PiecesError::TooLarge { region: 1 }),
            Error::Unequal {
                local: 1,
                remote: 2,
            },
            Error::Unsupported {
                provider: "x",
                operation: Operation::Map,
                kind,
                reason: "why".to_owned(),
            },
            Error::Unreachable {
                provider: "x",
                address: address.clone(),
                reason: "why".to_owned(),
            },
            Error::Unadvertised {
                provider: "x",
                address: address.clone(),
            },
        ] {
            assert_eq!(
                format!("{:?}", crossed(&error, &about)),
                format!("{error:?}")
            );
        }
        let other = Error::Credentials {
            path: "/key".to_owned(),
            problem: "is none".to_owned(),
        };
        let crossed = crossed(&other, &about).to_string();
        assert!(crossed.contains("/key: is none"), "{crossed}");
    }

    #[test]
    fn numbers_that_stand_for_nothing_are_the_providers_failure() {
        let about = About {
            provider: "x",
            call: "put",
            ..About::default()
        };
        for (status, detail) in [
            (-77, vec![]),
            (77, vec![]),
            (abi::E_REFUSED, vec![99]),
            (abi::E_REFUSED, vec![u64::MAX]),
            (abi::E_PIECES, vec![2, 1]),
            (abi::E_PIECES, vec![1, 9]),
            (abi::E_PIECES, vec![1, 1, u64::MAX]),
            (abi::E_UNSUPPORTED, vec![4, 1]),
            (abi::E_UNSUPPORTED, vec![0, 99]),
            (abi::E_NOT_LENT, vec![u64::MAX]),
            (abi::E_NO_SUCH_PEER, vec![]),
            (abi::E_KEY, vec![]),
        ] {
            let mut said = Said::new();
            // SAFETY: an error with room for its text.
            unsafe { fail(said.clean(), status, &detail, "so") };
            let error = heard(status, &said, &about);
            assert!(matches!(error, Error::Provider { .. }), "{error:?}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
        }
        assert_eq!(outcome(5, 0), None);
        assert_eq!(outcome(abi::ENDED_REFUSED, 99), None);
        assert_eq!(outcome(abi::ENDED_REFUSED, -1), None);
        assert!(closed(99, [0; 2], "").to_string().contains("99"));
    }

    #[test]
    fn ends_are_the_same_on_the_other_side() {
        let faults = Refusal::ALL.map(|refusal| Err(Fault::Refused(refusal)));
        let others = [
            Ok(()),
            Err(Fault::PeerLost),
            Err(Fault::Copy),
            Err(Fault::Access { code: 14 }),
        ];
        for ended in faults.into_iter().chain(others) {
            let (number, code) = outcome_numbers(ended);
            assert_eq!(outcome(number, code), Some(ended));
        }
        for why in [
            Closed::ByPeer,
            Closed::Truncated {
                what: "batch",
                received: 1,
                expected: 2,
            },
            Closed::Rejected("so".to_owned()),
            Closed::Io(io::Error::from_raw_os_error(104)),
            Closed::Idle { limit_ms: 5 },
            Closed::ByUs,
        ] {
            let (reason, detail, text) = closed_numbers(&why);
            let back = closed(reason, detail, &text);
            assert_eq!(format!("{back:?}"), format!("{why:?}"));
        }
    }
}
