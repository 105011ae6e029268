//! One connection's keys and its ciphertext.
//!
//! # Sealed and open
//!
//! Everything goes through TLS, unless both sides have said that payload need not (`seal_payload`). Then the stream is a
//! sequence of *runs*: within TLS a word that says how many sealed and how many open bytes follow, the sealed bytes, and
//! behind the record that ends them the open bytes as they are. So what travels open, how much of it, and what becomes of
//! it is for the authenticated sender to say; whoever is on the way can read and change the open bytes, and with anything
//! else ends the connection.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use moai_transport::Identity;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, Error, ServerConfig};

use super::records::{At, End, FRAGMENT_BYTES, Outgoing};
use crate::limits::{FIRST_BYTES, RECORD_BYTES, SEALED_READ_BYTES, SEALED_WRITE_BYTES};

/// Bytes in front of a record, of which the last two say how long it is.
const RECORD_HEADER: usize = 5;
/// Two lengths, little-endian: of what is sealed, and of what is open behind it.
const RUN_WORD: usize = 8;

/// Open bytes of one run, but for its last slice: lengths are `u32`, and so are those of slices' pieces.
const MAX_OPEN_RUN: usize = 1 << 30;

/// What stands between a socket and its frames.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) end: End,
    /// Who we are to the peer.
    pub(super) us: Arc<str>,
    /// Peers hold the same key as we do.
    pub(super) by_key: bool,
    /// Who the peer is, once it is known.
    pub(super) identity: Option<Identity>,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    /// Plaintext that nobody has asked for yet, from `plain_at` on.
    pub(super) plain: Vec<u8>,
    pub(super) plain_at: usize,
    /// Short pieces of plaintext, put together.
    gathered: Vec<u8>,
    /// The peer has said that nothing more will come.
    has_ended: bool,
    /// What has come cannot be. The library is asked for nothing any more: it may hold on to a part of a message that we
    /// have not kept.
    is_broken: bool,
    /// Our greeting has been sealed.
    pub(super) has_greeted: bool,
    pub(super) is_known: bool,
    /// Payload travels open.
    pub(super) is_open: bool,
    reading: Run,
    /// Open bytes that were announced and must come next.
    owed: usize,
}

/// What is left of a run.
#[derive(Debug, Default)]
struct Run {
    word: [u8; RUN_WORD],
    /// Bytes of the word that have come.
    words: usize,
    sealed: usize,
    open: usize,
}

/// Ciphertext that has come.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) bytes: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Which of some slices may travel open: those at whose number it is marked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks([u64; 8]);

impl Marks {
    pub(crate) fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }
}

const _: () = assert!(crate::limits::VECTORS <= 8 * 64);

impl Session {
    pub(super) fn client(
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
        us: &Arc<str>,
        by_key: bool,
    ) -> Result<Self, Error> {
        let end = UnbufferedClientConnection::new(Arc::clone(config), name)?;
        Ok(Self::new(End::Client(end), us, by_key))
    }

    pub(super) fn server(
        config: &Arc<ServerConfig>,
        us: &Arc<str>,
        by_key: bool,
    ) -> Result<Self, Error> {
        let end = UnbufferedServerConnection::new(Arc::clone(config))?;
        Ok(Self::new(End::Server(end), us, by_key))
    }

    fn new(end: End, us: &Arc<str>, by_key: bool) -> Self {
        Self {
            end,
            by_key,
            us: Arc::clone(us),
            identity: None,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            plain: Vec::new(),
            plain_at: 0,
            gathered: Vec::new(),
            has_ended: false,
            is_broken: false,
            has_greeted: false,
            is_known: false,
            is_open: false,
            reading: Run::default(),
            owed: 0,
        }
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref().filter(|_| self.is_known)
    }

    /// Whether payload is as protected as everything else.
    pub(crate) fn seals_payload(&self) -> bool {
        !self.is_open
    }

    /// Whether ciphertext waits for the socket.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub(crate) fn holds_memory(&self) -> bool {
        self.outgoing.holds_memory()
            || !self.incoming.bytes.is_empty()
            || self.plain.capacity() > 0
            || self.gathered.capacity() > 0
    }

    /// Gives back buffers with nothing in them.
    pub(crate) fn trim(&mut self) {
        self.outgoing.trim();
        self.gathered = Vec::new();
        if self.incoming.start == self.incoming.end {
            self.incoming = Incoming::default();
        }
        if self.plain_at == self.plain.len() {
            (self.plain, self.plain_at) = (Vec::new(), 0);
        }
    }

    /// Writes ciphertext; false if the socket takes no more of it.
    pub(crate) fn push(&mut self, socket: &mut impl Write) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match socket.write(self.outgoing.bytes()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => self.outgoing.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Says goodbye, as far as the socket takes it at once: so the peer can tell our end from a connection that was cut.
    pub(crate) fn farewell(&mut self, socket: &mut impl Write) {
        if self.is_known
            && !self.is_broken
            && self.owed == 0
            && matches!(self.push(socket), Ok(true))
        {
            let said = self.end.farewell(&mut self.outgoing);
            let _ = said.and_then(|()| self.push(socket));
        }
    }

    /// Takes as much of `slices` as the socket does, which may be nothing (`WouldBlock`). Less than all was taken only if
    /// the socket is full. What was taken is not in the socket yet; [`has_outgoing`](Self::has_outgoing) says whether.
    pub(crate) fn write(
        &mut self,
        socket: &mut impl Write,
        slices: &[IoSlice<'_>],
        marks: &Marks,
    ) -> io::Result<usize> {
        if self.is_broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !self.push(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.is_open {
            return self.write_runs(socket, slices, marks);
        }
        let mut taken = 0;
        for slice in slices {
            // Encrypting and sending take turns: what is encrypted is still in a cache when it is sent.
            for part in slice.chunks(SEALED_WRITE_BYTES) {
                self.seal(part)?;
                taken += part.len();
                if self.outgoing.len() >= SEALED_WRITE_BYTES && !self.push(socket)? {
                    self.seal_gathered()?;
                    return Ok(taken);
                }
            }
        }
        self.seal_gathered()?;
        self.push(socket)?;
        Ok(taken)
    }

    fn write_runs(
        &mut self,
        socket: &mut impl Write,
        slices: &[IoSlice<'_>],
        marks: &Marks,
    ) -> io::Result<usize> {
        let blocked = |taken: usize| match taken {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        };
        let mut taken = 0;
        let mut at = Position::default();
        while at.index < slices.len() {
            if self.owed > 0 {
                let mut open = [IoSlice::new(&[]); 64];
                let count = at.open(slices, self.owed, &mut open);
                let asked: usize = open[..count].iter().map(|slice| slice.len()).sum();
                let written = match socket.write_vectored(&open[..count]) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => written,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return blocked(taken);
                    }
                    Err(error) => return Err(error),
                };
                taken += written;
                self.owed -= written;
                at.advance(slices, written);
                if written < asked {
                    return Ok(taken);
                }
                continue;
            }
            let first = at.index;
            let (mut sealed, mut end) = (0, first);
            while end < slices.len() && !marks.has(end) && sealed < SEALED_WRITE_BYTES {
                sealed += slices[end].len() - if end == first { at.offset } else { 0 };
                end += 1;
            }
            let mut open = 0;
            let mut last = end;
            while last < slices.len() && marks.has(last) && open < MAX_OPEN_RUN {
                open += slices[last].len() - if last == first { at.offset } else { 0 };
                last += 1;
            }
            let mut word = [0; RUN_WORD];
            word[..4].copy_from_slice(&(sealed as u32).to_le_bytes());
            word[4..].copy_from_slice(&(open as u32).to_le_bytes());
            self.seal(&word)?;
            let mut left = sealed;
            while left > 0 {
                let part = &slices[at.index][at.offset..];
                self.seal(part)?;
                left -= part.len();
                at.advance(slices, part.len());
            }
            self.seal_gathered()?;
            self.owed = open;
            taken += sealed;
            if !self.push(socket)? {
                return blocked(taken);
            }
        }
        Ok(taken)
    }

    /// Encrypts `part`, behind what was gathered before; short parts are gathered first.
    fn seal(&mut self, part: &[u8]) -> io::Result<()> {
        if part.len() < FRAGMENT_BYTES {
            let room = FRAGMENT_BYTES - self.gathered.len();
            let (now, later) = part.split_at(part.len().min(room));
            self.gathered.extend_from_slice(now);
            if self.gathered.len() == FRAGMENT_BYTES {
                self.seal_gathered()?;
                self.gathered.extend_from_slice(later);
            }
            return Ok(());
        }
        self.seal_gathered()?;
        self.end.seal(part, &mut self.outgoing)
    }

    pub(super) fn seal_gathered(&mut self) -> io::Result<()> {
        if !self.gathered.is_empty() {
            self.end.seal(&self.gathered, &mut self.outgoing)?;
            self.gathered.clear();
        }
        Ok(())
    }

    /// Encrypts a whole message of the handshake.
    pub(super) fn seal_alone(&mut self, message: &[u8]) -> io::Result<()> {
        self.end.seal(message, &mut self.outgoing)
    }

    /// Hands the next bytes of the stream to `place`, at most `most`. Fewer only if the socket has no more, or the stream
    /// has ended; none (`Ok(0)`) only then.
    ///
    /// # Errors
    ///
    /// `WouldBlock` as of a socket; `UnexpectedEof` if the stream was cut; `InvalidData` if what has come was not sent by
    /// the peer.
    pub(crate) fn read(
        &mut self,
        socket: &mut impl Read,
        most: usize,
        place: &mut dyn FnMut(&[u8]),
    ) -> io::Result<usize> {
        let mut got = 0;
        while got < most {
            if self.is_broken {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let taken = if self.is_open {
                self.take_run(most - got, place)
            } else {
                self.take_sealed(most - got, place)
            };
            let taken = taken.inspect_err(|_| self.is_broken = true)?;
            if taken > 0 {
                got += taken;
                continue;
            }
            if self.has_ended {
                break;
            }
            match self.incoming.fill(socket) {
                Ok(0) if got > 0 => break,
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the stream was cut: it ended without the peer having said so",
                    ));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) if got > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    /// Plaintext from what has been decrypted, else from the next record; 0 if that is not there.
    fn take_sealed(&mut self, most: usize, place: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        let left = &self.plain[self.plain_at..];
        if !left.is_empty() {
            let now = left.len().min(most);
            place(&left[..now]);
            self.plain_at += now;
            return Ok(now);
        }
        self.plain.clear();
        self.plain_at = 0;
        // Records without plaintext are passed over: they are few and short, as they cost the peer as much as us.
        let mut placed = 0;
        while placed == 0 {
            let Some(record) = self.incoming.next_record()? else {
                return Ok(0);
            };
            let plain = &mut self.plain;
            self.end.take(
                record,
                &mut self.outgoing,
                &mut self.has_ended,
                &mut |payload| {
                    let now = payload.len().min(most - placed);
                    place(&payload[..now]);
                    placed += now;
                    plain.extend_from_slice(&payload[now..]);
                },
            )?;
            if self.has_ended {
                break;
            }
        }
        Ok(placed)
    }

    /// The next bytes of a run, sealed or open; 0 if they are not there.
    fn take_run(&mut self, most: usize, place: &mut dyn FnMut(&[u8])) -> io::Result<usize> {
        loop {
            let run = &mut self.reading;
            if run.words == RUN_WORD && run.sealed == 0 && run.open == 0 {
                run.words = 0;
            }
            if run.words == RUN_WORD && run.sealed == 0 {
                // The sender begins a record behind the open bytes, so nothing is left of the one before.
                if self.plain_at < self.plain.len() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "open bytes were announced within a record",
                    ));
                }
                let open = self.incoming.take(run.open.min(most));
                place(open);
                run.open -= open.len();
                return Ok(open.len());
            }
            if self.plain_at == self.plain.len() {
                self.plain.clear();
                self.plain_at = 0;
                let Some(record) = self.incoming.next_record()? else {
                    return Ok(0);
                };
                let plain = &mut self.plain;
                self.end.take(
                    record,
                    &mut self.outgoing,
                    &mut self.has_ended,
                    &mut |payload| {
                        plain.extend_from_slice(payload);
                    },
                )?;
                if self.has_ended {
                    return Ok(0);
                }
                continue;
            }
            let left = &self.plain[self.plain_at..];
            if run.words < RUN_WORD {
                let now = left.len().min(RUN_WORD - run.words);
                run.word[run.words..run.words + now].copy_from_slice(&left[..now]);
                run.words += now;
                self.plain_at += now;
                if run.words == RUN_WORD {
                    let [s0, s1, s2, s3, o0, o1, o2, o3] = run.word;
                    run.sealed = u32::from_le_bytes([s0, s1, s2, s3]) as usize;
                    run.open = u32::from_le_bytes([o0, o1, o2, o3]) as usize;
                }
                continue;
            }
            let now = left.len().min(run.sealed).min(most);
            place(&left[..now]);
            self.plain_at += now;
            run.sealed -= now;
            return Ok(now);
        }
    }
}

impl End {
    /// Takes one whole record of an open connection.
    fn take(
        &mut self,
        record: &mut [u8],
        outgoing: &mut Outgoing,
        has_ended: &mut bool,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let (consumed, at) = self.advance(record, outgoing, sink);
        match at {
            // Messages of the library that go over several records need those kept; after the handshake none does.
            Ok(_) if consumed != record.len() => Err(invalid(
                "a handshake message goes over several records".to_owned(),
            )),
            Ok(At::Ended) => {
                *has_ended = true;
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(invalid(error.to_string())),
        }
    }
}

impl Incoming {
    /// Reads what the socket has. The buffer grows with what comes at once: a connection that says little holds little,
    /// and one that is full holds a record that did not fit, or shows that more had come.
    fn fill(&mut self, socket: &mut impl Read) -> io::Result<usize> {
        if self.end == self.bytes.len() && self.end < SEALED_READ_BYTES {
            let more = (2 * self.end).clamp(FIRST_BYTES, SEALED_READ_BYTES);
            self.bytes.resize(more, 0);
        }
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = socket.read(&mut self.bytes[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// At most so many bytes, if there are any.
    fn take(&mut self, most: usize) -> &[u8] {
        let from = self.start;
        self.start += most.min(self.end - from);
        &self.bytes[from..self.start]
    }

    /// The next record, if all of it is there.
    pub(super) fn next_record(&mut self) -> io::Result<Option<&mut [u8]>> {
        let there = &self.bytes[self.start..self.end];
        let Some(header) = there.first_chunk::<RECORD_HEADER>() else {
            return Ok(None);
        };
        let bytes = RECORD_HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
        if bytes > RECORD_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a record of {bytes} bytes, more than {RECORD_BYTES}"),
            ));
        }
        if there.len() < bytes {
            return Ok(None);
        }
        let from = self.start;
        self.start += bytes;
        Ok(Some(&mut self.bytes[from..from + bytes]))
    }
}

/// How far a list of slices has been taken.
#[derive(Debug, Default)]
struct Position {
    index: usize,
    offset: usize,
}

impl Position {
    fn advance(&mut self, slices: &[IoSlice<'_>], mut bytes: usize) {
        while let Some(slice) = slices.get(self.index) {
            let left = slice.len() - self.offset;
            if bytes < left {
                self.offset += bytes;
                return;
            }
            bytes -= left;
            self.index += 1;
            self.offset = 0;
        }
    }

    /// The next `most` bytes, as slices.
    fn open<'s>(&self, slices: &'s [IoSlice<'_>], most: usize, out: &mut [IoSlice<'s>]) -> usize {
        let (mut count, mut left, mut offset) = (0, most, self.offset);
        for slice in slices[self.index..].iter().take(out.len()) {
            if left == 0 {
                break;
            }
            let bytes = &slice[offset..];
            offset = 0;
            let now = bytes.len().min(left);
            out[count] = IoSlice::new(&bytes[..now]);
            left -= now;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use moai_transport::{Closed, Unauthenticated};
    use rcgen::ExtendedKeyUsagePurpose;

    use super::*;
    use crate::secure::authority::{Authority, Wanted, shared_key, write_key};
    use crate::secure::{CertificateFiles, Credentials, Security, Shaken};

    /// One end: a session on a socket that does not block.
    struct One {
        session: Session,
        socket: UnixStream,
    }

    fn security(authority: &Authority, name: &str, names: &[&str], allow: &str) -> Security {
        let (certificate, key) = authority.issue(name, &Wanted::named(names));
        Security::Certificate(CertificateFiles {
            certificate,
            key,
            authorities: authority.file(),
            allow: allow.parse().unwrap(),
        })
    }

    fn ends(client: &Security, server: &Security) -> [One; 2] {
        let now = Instant::now();
        let address = [127, 0, 0, 1].into();
        let load = |security| Credentials::load(security).unwrap().unwrap();
        let sessions = [
            load(client).client(address, now).unwrap(),
            load(server).server(now).unwrap(),
        ];
        let (a, b) = UnixStream::pair().unwrap();
        let mut sockets = [a, b].into_iter();
        sessions.map(|session| {
            let socket = sockets.next().unwrap();
            socket.set_nonblocking(true).unwrap();
            One { session, socket }
        })
    }

    /// Shakes hands until both ends are done or one fails.
    fn shake(ends: &mut [One; 2], seal_payload: [bool; 2]) -> [Result<Shaken, Closed>; 2] {
        for _ in 0..100 {
            let mut at = seal_payload.into_iter();
            let steps = ends.each_mut().map(|one| {
                let seal = at.next().unwrap();
                one.session.shake(&mut one.socket, seal)
            });
            let done = |step: &Result<Shaken, Closed>| matches!(step, Ok(Shaken::Done));
            if steps.iter().all(done) || steps.iter().any(Result::is_err) {
                return steps;
            }
        }
        panic!("the handshake hangs");
    }

    fn why(step: &Result<Shaken, Closed>) -> &Unauthenticated {
        match step {
            Err(Closed::Unauthenticated(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    /// The server's reason, and then the client's.
    fn refusals(client: &Security, server: &Security) -> (Unauthenticated, Unauthenticated) {
        let mut both = ends(client, server);
        let mut reasons = [None, None];
        for _ in 0..100 {
            for (one, reason) in both.iter_mut().zip(&mut reasons) {
                if reason.is_none() {
                    let step = one.session.shake(&mut one.socket, true);
                    assert!(!matches!(step, Ok(Shaken::Done)), "it was let in");
                    if step.is_err() {
                        *reason = Some(why(&step).clone());
                        let _ = one.socket.shutdown(std::net::Shutdown::Write);
                    }
                }
            }
        }
        let [client, server] = reasons.map(Option::unwrap);
        (server, client)
    }

    #[test]
    fn each_side_learns_who_the_other_is() {
        let authority = Authority::new();
        let a = security(&authority, "a", &["spiffe://c/a"], "spiffe://c/b");
        let b = security(
            &authority,
            "b",
            &["spiffe://c/b", "b.example"],
            "spiffe://c/*",
        );
        let mut both = ends(&a, &b);
        assert!(both[0].session.identity().is_none());
        for step in shake(&mut both, [true, true]) {
            assert_eq!(step.unwrap(), Shaken::Done);
        }
        let names = both
            .each_ref()
            .map(|one| one.session.identity().unwrap().to_string());
        assert_eq!(names, ["spiffe://c/b, dns:b.example", "spiffe://c/a"]);
    }

    #[test]
    fn who_is_not_let_in_is_told_apart_here_and_told_nothing_there() {
        let (ours, other) = (Authority::new(), Authority::new());
        let server = security(&ours, "s", &["spiffe://c/s"], "spiffe://c/ns/*");
        let named = |names: &[&str]| security(&ours, "n", names, "*");
        let refused = |client: &Security| {
            let (here, there) = refusals(client, &server);
            assert!(
                matches!(&there, Unauthenticated::Refused { us, .. } if us.contains("c/")),
                "{there}"
            );
            here.to_string()
        };
        let text = refused(&named(&["spiffe://c/nsx/n"]));
        assert!(
            text.contains("spiffe://c/nsx/n") && text.contains("spiffe://c/ns/*"),
            "{text}"
        );
        let stranger = security(&other, "o", &["spiffe://c/ns/o"], "*");
        let Security::Certificate(mut files) = stranger else {
            unreachable!()
        };
        files.authorities = ours.file();
        let text = refused(&Security::Certificate(files));
        assert!(
            text.contains("spiffe://c/ns/o") && text.contains("no authority"),
            "{text}"
        );
        for (days, usages, reason) in [
            (-1, Wanted::named(&[]).usages, "expired"),
            (
                9,
                vec![ExtendedKeyUsagePurpose::ServerAuth],
                "client authentication",
            ),
        ] {
            let names = &["spiffe://c/ns/n"];
            let (certificate, key) = ours.issue(
                "x",
                &Wanted {
                    names,
                    days,
                    usages,
                },
            );
            let text = refused(&Security::Certificate(CertificateFiles {
                certificate,
                key,
                authorities: ours.file(),
                allow: "*".parse().unwrap(),
            }));
            assert!(
                text.contains("spiffe://c/ns/n") && text.contains(reason),
                "{text}"
            );
        }
    }

    #[test]
    fn who_connects_judges_as_well() {
        let authority = Authority::new();
        let client = security(&authority, "c", &["spiffe://c/c"], "spiffe://c/s");
        let server = security(&authority, "s", &["spiffe://c/other"], "*");
        let (there, here) = refusals(&client, &server);
        assert!(matches!(here, Unauthenticated::NotAllowed { .. }), "{here}");
        assert!(matches!(there, Unauthenticated::Refused { .. }), "{there}");
    }

    #[test]
    fn holders_of_one_key_find_each_other_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        shared_key(&one);
        shared_key(&two);
        let [one, two] = [one, two].map(Security::SharedKey);
        let mut both = ends(&one, &one);
        let _ = shake(&mut both, [true, true]).map(Result::unwrap);
        assert_eq!(both[0].session.identity(), Some(&Identity::SharedKey));
        let (_, there) = refusals(&one, &two);
        assert_eq!(there, Unauthenticated::OtherKey);
        let authority = Authority::new();
        let certified = security(&authority, "c", &["spiffe://c/c"], "*");
        let (here, _) = refusals(&certified, &one);
        assert!(here.to_string().contains("no way in common"), "{here}");
    }

    #[test]
    fn credentials_that_cannot_be_used_name_the_file() {
        let authority = Authority::new();
        let good = security(&authority, "a", &["spiffe://c/a"], "*");
        let other = authority.issue("b", &Wanted::named(&["spiffe://c/b"]));
        let nameless = authority.issue("n", &Wanted::named(&[]));
        let Security::Certificate(good) = good else {
            unreachable!()
        };
        let load = |change: &dyn Fn(&mut CertificateFiles)| {
            let mut files = good.clone();
            change(&mut files);
            Credentials::load(&Security::Certificate(files))
                .unwrap_err()
                .to_string()
        };
        let text = load(&|files| files.key.clone_from(&other.1));
        assert!(
            text.contains("b-key.pem: cannot be used with") && text.contains("a.pem"),
            "{text}"
        );
        let text = load(&|files| files.certificate.clone_from(&nameless.0));
        assert!(
            text.contains("n.pem") && text.contains("neither a SPIFFE ID"),
            "{text}"
        );
        let text = load(&|files| files.authorities.push("nowhere"));
        assert!(text.contains("nowhere: cannot be read"), "{text}");
        let path = authority.path("shared");
        write_key(&path, "correct horse battery staple");
        let error = Credentials::load(&Security::SharedKey(path)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("horse"), "{error}");
    }

    /// Sends slices of all sizes in both directions over a socket that is often full, and compares what comes.
    #[test]
    fn every_byte_arrives_once_and_in_order_sealed_or_open() {
        let authority = Authority::new();
        let a = security(&authority, "a", &["spiffe://c/a"], "*");
        for seal in [[true, true], [true, false], [false, false]] {
            let mut both = ends(&a, &a);
            let _ = shake(&mut both, seal).map(Result::unwrap);
            let is_open = !seal[0] && !seal[1];
            assert!(
                both.iter()
                    .all(|one| one.session.seals_payload() != is_open)
            );
            let mut state = 7_u64;
            let mut random = move |below: u64| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) % below
            };
            let mut received = Vec::new();
            let mut sent = Vec::new();
            for round in 0..60_u64 {
                let sizes: Vec<usize> = (0..1 + random(9))
                    .map(|_| {
                        let most = [40, 5_000, 300_000][random(3) as usize];
                        random(most) as usize
                    })
                    .collect();
                let bytes: Vec<Vec<u8>> = sizes
                    .iter()
                    .map(|&size| (0..size).map(|at| (at as u64 * 31 + round) as u8).collect())
                    .collect();
                let marked: Vec<bool> = bytes.iter().map(|_| random(2) == 0).collect();
                let all: usize = sizes.iter().sum();
                let mut gone = 0;
                while gone < all || both[0].session.has_outgoing() {
                    let mut skip = gone;
                    let mut marks = Marks::default();
                    let mut slices = Vec::new();
                    for (slice, marked) in bytes.iter().zip(&marked) {
                        let left = &slice[skip.min(slice.len())..];
                        skip -= slice.len() - left.len();
                        if *marked && !left.is_empty() {
                            marks.set(slices.len());
                        }
                        if !left.is_empty() {
                            slices.push(IoSlice::new(left));
                        }
                    }
                    let [from, to] = &mut both;
                    match from.session.write(&mut from.socket, &slices, &marks) {
                        Ok(taken) => gone += taken,
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                    let most = 1 + random(200_000) as usize;
                    let before = received.len();
                    let read = to.session.read(&mut to.socket, most, &mut |bytes| {
                        received.extend_from_slice(bytes);
                    });
                    match read {
                        Ok(read) => assert_eq!(read, received.len() - before),
                        Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                    }
                }
                sent.extend(bytes.concat());
            }
            both[0].session.farewell(&mut both[0].socket);
            let to = &mut both[1];
            loop {
                match to.session.read(&mut to.socket, 1 << 20, &mut |bytes| {
                    received.extend_from_slice(bytes);
                }) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(received == sent, "{seal:?}");
        }
    }

    #[test]
    fn what_was_changed_on_the_way_ends_the_stream() {
        let authority = Authority::new();
        let a = security(&authority, "a", &["spiffe://c/a"], "*");
        for at in [3, 4, 5, 20, 60] {
            let mut both = ends(&a, &a);
            let _ = shake(&mut both, [true, true]).map(Result::unwrap);
            let [from, to] = &mut both;
            let mut wire = Vec::new();
            let slices = [IoSlice::new(&[7; 100])];
            from.session
                .write(&mut wire, &slices, &Marks::default())
                .unwrap();
            wire[at] ^= 1;
            from.socket.write_all(&wire).unwrap();
            drop(from.socket.shutdown(std::net::Shutdown::Write));
            let read = to
                .session
                .read(&mut to.socket, 1 << 20, &mut |_| panic!("taken"));
            let kind = read.unwrap_err().kind();
            let expected = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof];
            assert!(expected.contains(&kind), "{at}: {kind:?}");
        }
    }

    #[test]
    fn keys_are_changed_under_way_and_nothing_is_asked_of_a_broken_session() {
        let authority = Authority::new();
        let a = security(&authority, "a", &["spiffe://c/a"], "*");
        let mut both = ends(&a, &a);
        let _ = shake(&mut both, [true, true]).map(Result::unwrap);
        let [from, to] = &mut both;
        let mut received = Vec::new();
        for round in 0..9_u8 {
            from.session.end.change_keys();
            let payload = [round; 20_000];
            let slices = [IoSlice::new(&payload)];
            let marks = Marks::default();
            let written = from.session.write(&mut from.socket, &slices, &marks);
            assert_eq!(written.unwrap(), payload.len());
            let mut place = |bytes: &[u8]| received.extend_from_slice(bytes);
            let read = to.session.read(&mut to.socket, payload.len(), &mut place);
            assert_eq!(read.unwrap(), payload.len());
            assert_eq!(received, payload);
            received.clear();
        }
        from.socket.write_all(&[23, 3, 3, 0, 20]).unwrap();
        from.socket.write_all(&[0; 20]).unwrap();
        for _ in 0..2 {
            let read = to.session.read(&mut to.socket, 9, &mut |_| panic!("taken"));
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let slices = [IoSlice::new(b"x")];
        let written = to.session.write(&mut to.socket, &slices, &Marks::default());
        assert!(written.is_err());
        to.session.farewell(&mut to.socket);
    }

    #[test]
    fn a_stream_that_was_cut_is_told_from_one_that_ended() {
        let authority = Authority::new();
        let a = security(&authority, "a", &["spiffe://c/a"], "*");
        for says_so in [true, false] {
            let mut both = ends(&a, &a);
            let _ = shake(&mut both, [true, true]).map(Result::unwrap);
            let [from, to] = &mut both;
            if says_so {
                from.session.farewell(&mut from.socket);
            }
            from.socket.shutdown(std::net::Shutdown::Write).unwrap();
            let read = to.session.read(&mut to.socket, 9, &mut |_| {});
            match says_so {
                true => assert_eq!(read.unwrap(), 0),
                false => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof),
            }
        }
    }
}
