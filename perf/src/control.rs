//! The connection on which the two processes agree what to do next: JSON lines, one call and one reply.
//!
//! Nothing is measured on it; between `Begin` and `End` it is silent.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    failure::Failure,
    mover::{Door, Step, Way},
    shapes::Shape,
};

/// What one process asks of the other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    /// Opens one more partner.
    Open { way: Way, shape: Shape },
    /// The mover of that partner has connected.
    Join { id: usize },
    /// Fills its memory.
    Fill { id: usize, salt: u64 },
    /// Lets it do its part of a step.
    Begin { id: usize, step: Step },
    /// The step is over.
    End,
    /// Checks its memory.
    Check { id: usize, salt: u64 },
    /// Drops all partners.
    CloseAll,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// First of all: who speaks. Programs of two versions do not understand each other.
    Hello {
        version: String,
    },
    Opened {
        id: usize,
        door: Door,
    },
    Done,
    /// At the end of a step: CPU time that it took, user and system.
    Spent {
        cpu_ns: u64,
    },
    Failed {
        text: String,
        is_wrong: bool,
    },
}

impl From<&Failure> for Reply {
    fn from(failure: &Failure) -> Self {
        let (text, is_wrong) = match failure {
            Failure::Input(text) | Failure::Lost(text) => (text, false),
            Failure::Wrong(text) => (text, true),
        };
        Self::Failed {
            text: text.clone(),
            is_wrong,
        }
    }
}

/// Longest line: a call is some hundred bytes, and a peer that sends no end is not listened to.
const MOST_LINE: u64 = 1 << 16;

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Control {
    stream: BufReader<TcpStream>,
    peer: SocketAddr,
}

impl Control {
    pub(crate) fn new(stream: TcpStream) -> Result<Self, Failure> {
        let lost = Failure::lost("the other process cannot be reached");
        stream.set_nodelay(true).map_err(&lost)?;
        let peer = stream.peer_addr().map_err(&lost)?;
        Ok(Self {
            stream: BufReader::new(stream),
            peer,
        })
    }

    /// The address of the other process.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// The address of this process, as the other one reaches it.
    pub(crate) fn local(&self) -> Result<IpAddr, Failure> {
        let local = self.stream.get_ref().local_addr();
        local
            .map(|local| local.ip())
            .map_err(Failure::lost("no local address"))
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), Failure> {
        let mut line =
            serde_json::to_string(message).map_err(|error| Failure::Lost(error.to_string()))?;
        line.push('\n');
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.map_err(Failure::lost("the other process is gone"))
    }

    /// The next message, or `None` if the other process has hung up.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let mut line = String::new();
        let mut limited = (&mut self.stream).take(MOST_LINE);
        let read = limited.read_line(&mut line);
        if read.map_err(Failure::lost("the other process is gone"))? == 0 {
            return Ok(None);
        }
        let read = serde_json::from_str(&line);
        read.map(Some).map_err(|error| {
            let start: String = line.chars().take(80).collect();
            Failure::Lost(format!("the other process said {start:?}: {error}"))
        })
    }

    /// Whether the other process has said something that was not received yet.
    pub(crate) fn is_waiting(&self) -> bool {
        if !self.stream.buffer().is_empty() {
            return true;
        }
        let mut fds = [PollFd::new(self.stream.get_ref(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // An error shows when the message is received.
        !matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// A call and its reply, as far as that is no failure.
    pub(crate) fn call(&mut self, call: Call) -> Result<Reply, Failure> {
        self.send(&call)?;
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> Result<Reply, Failure> {
        match self.receive()? {
            Some(Reply::Failed {
                text,
                is_wrong: true,
            }) => Err(Failure::Wrong(text)),
            Some(Reply::Failed {
                text,
                is_wrong: false,
            }) => Err(Failure::Lost(format!("the other process: {text}"))),
            Some(reply) => Ok(reply),
            None => Err(Failure::Lost("the other process has hung up".to_owned())),
        }
    }

    /// A call that is answered with no more than that it is done.
    pub(crate) fn order(&mut self, call: Call) -> Result<(), Failure> {
        match self.call(call)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Failure {
    Failure::Lost(format!(
        "the other process answered {reply:?}, which is no answer to the call"
    ))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::{
        mover::{Drive, Pacing},
        shapes::Order,
    };

    fn pair() -> (Control, Control) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        (Control::new(here).unwrap(), Control::new(there).unwrap())
    }

    #[test]
    fn calls_come_out_as_they_went_in() {
        let (mut here, mut there) = pair();
        assert!(!there.is_waiting());
        let shape = Shape {
            piece: 256,
            pieces: 9,
            order: Order::Strided,
            seed: u64::MAX,
        };
        let way = Way::Sockets(Drive {
            lanes: 4,
            threads: 1,
            pacing: Pacing::System,
        });
        let calls = [
            Call::Open { way, shape },
            Call::Open {
                way: Way::Foreign { of: Some(0) },
                shape,
            },
            Call::Begin {
                id: 1,
                step: Step::Ping {
                    count: 3,
                    bytes: 256,
                },
            },
            Call::Check {
                id: 0,
                salt: u64::MAX,
            },
            Call::End,
        ];
        for call in calls {
            here.send(&call).unwrap();
        }
        for call in calls {
            assert!(there.is_waiting());
            assert_eq!(there.receive::<Call>().unwrap(), Some(call));
        }
        drop(here);
        assert!(there.is_waiting());
        assert_eq!(there.receive::<Call>().unwrap(), None);
    }

    #[test]
    fn failures_keep_their_kind() {
        let (mut here, mut there) = pair();
        for failure in [
            Failure::Wrong("differs".into()),
            Failure::Input("no".into()),
        ] {
            there.send(&Reply::from(&failure)).unwrap();
        }
        assert!(matches!(here.reply(), Err(Failure::Wrong(text)) if text == "differs"));
        assert!(matches!(here.reply(), Err(Failure::Lost(text)) if text.ends_with("no")));
    }

    #[test]
    fn what_is_no_message_or_has_no_end_is_an_error() {
        let (mut here, mut there) = pair();
        here.stream
            .get_mut()
            .write_all(b"GET / HTTP/1.1\n")
            .unwrap();
        let text = there.receive::<Call>().unwrap_err().to_string();
        assert!(text.contains("GET /"), "{text}");
        let endless = vec![b' '; MOST_LINE as usize + 1];
        here.stream.get_mut().write_all(&endless).unwrap();
        assert!(there.receive::<Call>().is_err());
    }
}
