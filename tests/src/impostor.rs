//! A producer that speaks the protocol as it should, up to the point where a test takes over.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Instant,
};

use moai_collectives::{
    execute::Requested,
    protocol::{
        handle::EngineKey,
        node::{Action, Config, LinkId, Message, Node, Pull},
    },
    transfer::{PRODUCER, Session, batch_of},
};
use moai_transport::{
    Batch,
    limits::MAX_MESSAGE_BYTES,
    wire::{HEADER_BYTES, Header},
};

const KEY: [u8; 32] = [7; 32];
const EPOCH: u64 = 11;

/// The session that impostors take part in, for the fabric under test.
///
/// # Panics
///
/// Never: it is one of ours.
#[must_use]
pub fn session() -> Session {
    let bytes = KEY.into_iter().chain(EPOCH.to_be_bytes());
    let secret: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    Session::from_secret(&secret).expect("a key and an epoch")
}

/// Accepts connections, and lets `act` have each of them in a thread of its own.
///
/// # Panics
///
/// If nothing can be listened on.
pub fn accept(act: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let address = listener.local_addr().expect("it listens");
    let act = Arc::new(act);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let act = Arc::clone(&act);
            thread::spawn(move || act(stream));
        }
    });
    address
}

/// As [`accept`], for who behaves until it is asked for rank 0.
pub fn asked(
    requested: &Arc<Requested>,
    act: impl Fn(Asked) + Send + Sync + 'static,
) -> SocketAddr {
    let requested = Arc::clone(requested);
    accept(move |stream| {
        if let Some(asked) = Asked::hear(stream, &requested, None) {
            act(asked);
        }
    })
}

/// As [`accept`], for who sends a chunk as soon as it has said who it is, and behaves otherwise.
pub fn eager(requested: &Arc<Requested>, bytes: u32) -> SocketAddr {
    let requested = Arc::clone(requested);
    accept(move |stream| {
        if let Some(asked) = Asked::hear(stream, &requested, Some(bytes)) {
            hold(asked.stream);
        }
    })
}

/// A consumer's pull, and the connection on which it came.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "tests look at all of it")]
pub struct Asked {
    /// The connection.
    pub stream: TcpStream,
    /// What is asked for.
    pub pull: Pull,
}

impl Asked {
    /// Greets, describes itself and agrees, until it is asked for its part.
    fn hear(mut stream: TcpStream, requested: &Requested, eager: Option<u32>) -> Option<Self> {
        let mut config = Config::new(PRODUCER, 0, vec![0], EPOCH, EngineKey::new(KEY));
        config.descriptor = requested.digest().to_vec().into();
        let mut node = Node::new(config).expect("as a producer is configured");
        let (link, start) = (LinkId(1), Instant::now());
        let now = || start.elapsed().as_nanos() as u64;
        let mut eager = eager;
        node.accepted(link, None, now());
        loop {
            while let Some(action) = node.actions().pop_front() {
                match action {
                    Action::Send { message, .. } => {
                        say(&mut stream, &message);
                        if let Some(bytes) = eager.take() {
                            batch(
                                &mut stream,
                                batch_of(1, 0, 0),
                                bytes,
                                &vec![1; bytes as usize],
                            );
                        }
                    }
                    Action::Negotiate { digest, .. } => {
                        node.agreed(digest, Ok(requested.digest()), now());
                    }
                    Action::Close { .. } => return None,
                    _ => {}
                }
            }
            let message = hear(&mut stream)?;
            match Message::decode(&message) {
                Ok(Message::Pull(pull)) => {
                    return Some(Self {
                        stream,
                        pull: *pull,
                    });
                }
                _ => node.message(link, &message, now()),
            }
        }
    }

    /// Says something.
    pub fn say(&mut self, message: &Message) {
        say(&mut self.stream, message);
    }

    /// Sends a chunk that is announced with so many bytes.
    pub fn chunk(&mut self, chunk: u32, bytes: u32, payload: &[u8]) {
        let id = batch_of(self.pull.transfer, self.pull.part, chunk);
        batch(&mut self.stream, id, bytes, payload);
    }

    /// Accepts, with so many chunks and bytes.
    pub fn accept(&mut self, chunks: u64, bytes: u64) {
        let Pull { transfer, part, .. } = self.pull;
        self.say(&Message::Accept {
            transfer,
            part,
            chunks,
            bytes,
            mapped: false,
        });
    }

    /// Tells the digests of all chunks.
    pub fn sums(&mut self, sums: Vec<u64>) {
        let Pull { transfer, part, .. } = self.pull;
        self.say(&Message::Sums {
            transfer,
            part,
            mapped: false,
            first: 0,
            sums,
        });
    }
}

/// Sends a message, if anybody is there.
pub fn say(stream: &mut TcpStream, message: &Message) {
    frame(stream, &message.encode());
}

/// As [`say`], whatever the bytes are.
pub fn frame(stream: &mut TcpStream, body: &[u8]) {
    let bytes = body.len() as u32;
    let header = Header::Message { bytes }.encode();
    let _ = stream.write_all(&[&header[..], body].concat());
}

/// Sends a batch that is announced with so many bytes.
pub fn batch(stream: &mut TcpStream, id: u64, bytes: u32, payload: &[u8]) {
    let header = Header::Batch(Batch { id, bytes }).encode();
    let _ = stream.write_all(&[&header[..], payload].concat());
}

/// Keeps a connection open for as long as the other side does.
pub fn hold(mut stream: TcpStream) {
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// The next message; a consumer sends nothing else over one lane.
fn hear(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let Ok(Header::Message { bytes }) = Header::decode(&header) else {
        return None;
    };
    let mut body = vec![0; bytes.min(MAX_MESSAGE_BYTES) as usize];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}
