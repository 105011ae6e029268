//! Nodes as name servers have them.
//!
//! Servers are asked directly instead of through the C library: its questions have no deadline that could be set, and it
//! knows no `SRV` records. Search lists are therefore not used; a zone is given in full.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use moai_transport::Address;
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData,
};
use thiserror::Error;

use super::{
    entry::{EngineName, EntryError, Node},
    source::Dns,
};
use crate::limits::{MAX_DNS_ANSWER_BYTES, MAX_NAME_SERVERS, MAX_NODE_ADDRESSES, MAX_NODES};

/// How long one server may take; then the next is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often all are asked: a lost datagram is not a lost server.
const ROUNDS: usize = 2;
/// Answers over UDP are this long at most; servers shorten longer ones.
const UDP_BYTES: usize = 4096;
/// Where the system says whom to ask.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where name servers listen.
pub(super) const DNS_PORT: u16 = 53;

/// Asks name servers.
#[derive(Debug)]
pub(super) struct Resolver {
    config: Dns,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    clippy::exhaustive_enums,
    reason = "the records that tell where nodes are"
)]
pub enum Record {
    /// Hosts and ports of a service.
    Srv,
    /// IPv4 addresses of a host.
    A,
    /// IPv6 addresses of a host.
    Aaaa,
}

/// What a name server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// It did not fit, and is to be asked for over TCP.
    pub is_truncated: bool,
    /// Hosts of a service, those of lowest priority first, with their ports.
    pub hosts: Vec<(String, u16)>,
    /// Addresses, each with the name that it was given for.
    pub addresses: Vec<(String, IpAddr)>,
}

/// Name servers do not say where nodes are.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DnsError {
    /// No server is known.
    #[error("no name server: {RESOLV_CONF} has none; name one as dns:ZONE@ADDRESS")]
    NoServers,
    /// None has answered.
    #[error("name server {server} does not answer for {name}")]
    Io {
        /// The last that was asked.
        server: SocketAddr,
        /// For what name.
        name: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// It answered that it cannot.
    #[error("name server {server} answers {code} for {name}")]
    Refused {
        /// The server.
        server: SocketAddr,
        /// For what name.
        name: String,
        /// Its code.
        code: String,
    },
    /// A name cannot be asked for.
    #[error("{name} is no domain name: a label has 63 characters at most, and all 255")]
    Name {
        /// The name.
        name: String,
    },
    /// An answer is none.
    #[error("a name server's answer cannot be read: {problem}")]
    Malformed {
        /// What is wrong with it.
        problem: String,
    },
    /// More hosts than an engine has nodes.
    #[error("{name} has {count} hosts, of {most} at most")]
    TooMany {
        /// The name.
        name: String,
        /// How many.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// What was found makes no node.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

impl Resolver {
    pub(super) fn new(config: Dns) -> Self {
        Self { config }
    }

    /// An engine's nodes.
    pub(super) fn nodes(&self, engine: &EngineName) -> Result<Vec<Node>, DnsError> {
        let servers = match self.config.servers.as_slice() {
            [] => servers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
            given => given.to_vec(),
        };
        let zone = &self.config.zone;
        match self.config.port {
            Some(port) => hosts_of(&servers, &format!("{engine}.{zone}"), port),
            None => services_of(&servers, &format!("_moai._tcp.{engine}.{zone}")),
        }
    }
}

/// A node for each address of a name. Where there are IPv4 addresses, IPv6 ones are of the same hosts.
fn hosts_of(servers: &[SocketAddr], name: &str, port: u16) -> Result<Vec<Node>, DnsError> {
    let mut found = ask(servers, name, Record::A)?.addresses;
    if found.is_empty() {
        found = ask(servers, name, Record::Aaaa)?.addresses;
    }
    few(name, found.len())?;
    let node = |(_, ip)| Ok(Node::at(vec![tcp(ip, port)?])?);
    found.into_iter().map(node).collect()
}

/// A node for each host of a service, with all its addresses.
fn services_of(servers: &[SocketAddr], name: &str) -> Result<Vec<Node>, DnsError> {
    let answer = ask(servers, name, Record::Srv)?;
    few(name, answer.hosts.len())?;
    let mut nodes = Vec::new();
    for (host, port) in &answer.hosts {
        let own = answer.addresses.iter().filter(|(name, _)| name == host);
        let mut ips: Vec<IpAddr> = own.map(|&(_, ip)| ip).collect();
        if ips.is_empty() {
            // An alias leads to addresses under another name: all that come are the host's.
            for record in [Record::A, Record::Aaaa] {
                let found = ask(servers, host, record)?.addresses;
                ips.extend(found.into_iter().map(|(_, ip)| ip));
            }
        }
        ips.truncate(MAX_NODE_ADDRESSES);
        // A host that is starting, or has gone, may have a service record and no address.
        if !ips.is_empty() {
            let addresses = ips.into_iter().map(|ip| tcp(ip, *port));
            nodes.push(Node::at(addresses.collect::<Result<_, _>>()?)?);
        }
    }
    Ok(nodes)
}

fn few(name: &str, count: usize) -> Result<(), DnsError> {
    match count <= MAX_NODES {
        true => Ok(()),
        false => Err(DnsError::TooMany {
            name: name.to_owned(),
            count,
            most: MAX_NODES,
        }),
    }
}

fn tcp(ip: IpAddr, port: u16) -> Result<Address, EntryError> {
    let socket = SocketAddr::new(ip, port);
    Address::new("tcp", socket).map_err(|cause| EntryError::Address { cause })
}

/// The name servers of a `resolv.conf`.
fn servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let ip = line.strip_prefix("nameserver")?.trim().parse().ok()?;
        Some(SocketAddr::new(ip, DNS_PORT))
    };
    text.lines()
        .filter_map(server)
        .take(MAX_NAME_SERVERS)
        .collect()
}

/// Asks one server after the other, until one answers.
fn ask(servers: &[SocketAddr], name: &str, record: Record) -> Result<Answer, DnsError> {
    // Each `RandomState` is keyed by the system's randomness: who does not see the question cannot guess it.
    let id = RandomState::new().build_hasher().finish() as u16;
    let asked = Asked { id, name, record };
    let question = asked.encode()?;
    let mut last = DnsError::NoServers;
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        match asked.ask(*server, &question) {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A question.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    id: u16,
    name: &'a str,
    record: Record,
}

/// Why bytes are not the answer to a question.
#[derive(Debug)]
enum Undecoded {
    /// They answer another one.
    Other,
    /// The server cannot.
    Refused(RCODE),
    /// They are no message, or none that can be.
    Malformed(String),
}

impl Asked<'_> {
    fn ask(self, server: SocketAddr, question: &[u8]) -> Result<Answer, DnsError> {
        let io = |cause| DnsError::Io {
            server,
            name: self.name.to_owned(),
            cause,
        };
        let mut answer = self.over_udp(server, question).map_err(io)?;
        if matches!(&answer, Ok(answer) if answer.is_truncated) {
            answer = self.decode(&over_tcp(server, question).map_err(io)?);
        }
        answer.map_err(|undecoded| match undecoded {
            Undecoded::Other => DnsError::Malformed {
                problem: "it answers another question".into(),
            },
            Undecoded::Refused(code) => DnsError::Refused {
                server,
                name: self.name.to_owned(),
                code: format!("{code:?}"),
            },
            Undecoded::Malformed(problem) => DnsError::Malformed { problem },
        })
    }

    fn over_udp(
        self,
        server: SocketAddr,
        question: &[u8],
    ) -> io::Result<Result<Answer, Undecoded>> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connected, so that only datagrams of the server are taken.
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.send(question)?;
        let start = Instant::now();
        let mut buffer = [0; UDP_BYTES];
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            let bytes = socket.recv(&mut buffer)?;
            match self.decode(&buffer[..bytes]) {
                // Ours may still come.
                Err(Undecoded::Other) => {}
                answer => return Ok(answer),
            }
        }
    }

    fn encode(self) -> Result<Vec<u8>, DnsError> {
        let fail = |_| DnsError::Name {
            name: self.name.to_owned(),
        };
        let mut packet = Packet::new_query(self.id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new(self.name).map_err(fail)?;
        let (kind, class) = (QTYPE::TYPE(self.record.code()), QCLASS::CLASS(CLASS::IN));
        packet
            .questions
            .push(Question::new(name, kind, class, false));
        packet.build_bytes_vec().map_err(fail)
    }

    fn decode(self, bytes: &[u8]) -> Result<Answer, Undecoded> {
        if bytes.len() > MAX_DNS_ANSWER_BYTES {
            return Err(Undecoded::Malformed("it is too long".into()));
        }
        let malformed = |error: simple_dns::SimpleDnsError| Undecoded::Malformed(error.to_string());
        let packet = Packet::parse(bytes).map_err(malformed)?;
        let same = |question: &Question<'_>| {
            let kind = question.qtype == QTYPE::TYPE(self.record.code());
            kind && text_of(&question.qname).eq_ignore_ascii_case(self.name)
        };
        let is_answer = packet.id() == self.id && packet.has_flags(PacketFlag::RESPONSE);
        if !is_answer || !packet.questions.first().is_some_and(same) {
            return Err(Undecoded::Other);
        }
        match packet.rcode() {
            // There is no such name: an engine without nodes.
            RCODE::NoError | RCODE::NameError => {}
            code => return Err(Undecoded::Refused(code)),
        }
        let mut answer = Answer {
            is_truncated: packet.has_flags(PacketFlag::TRUNCATION),
            ..Answer::default()
        };
        let mut hosts = Vec::new();
        for record in packet.answers.iter().chain(&packet.additional_records) {
            let mut found = |ip: IpAddr| answer.addresses.push((text_of(&record.name), ip));
            match &record.rdata {
                RData::SRV(srv) => hosts.push((srv.priority, text_of(&srv.target), srv.port)),
                RData::A(a) => found(Ipv4Addr::from(a.address).into()),
                RData::AAAA(aaaa) => found(Ipv6Addr::from(aaaa.address).into()),
                _ => {}
            }
        }
        hosts.sort();
        hosts.dedup();
        // A target of "." says that there is decidedly no such service (RFC 2782); port 0 cannot be connected to.
        hosts.retain(|(_, host, port)| !host.is_empty() && *port != 0);
        answer.hosts = hosts
            .into_iter()
            .map(|(_, host, port)| (host, port))
            .collect();
        Ok(answer)
    }
}

impl Record {
    fn code(self) -> TYPE {
        match self {
            Self::Srv => TYPE::SRV,
            Self::A => TYPE::A,
            Self::Aaaa => TYPE::AAAA,
        }
    }
}

/// Over a connection, where answers may be longer.
fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed)?;
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(bytes))];
    let start = Instant::now();
    let mut filled = 0;
    // A server that sends a byte at a time ends with the patience for all of it.
    while filled < answer.len() {
        if start.elapsed() >= PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.read(&mut answer[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => filled += bytes,
        }
    }
    Ok(answer)
}

/// Reads an answer to the question `id` for a record of `name`.
///
/// # Errors
///
/// [`DnsError::Malformed`] if it is not the answer to this question, or no message of DNS at all.
pub fn read_answer(bytes: &[u8], id: u16, name: &str, record: Record) -> Result<Answer, DnsError> {
    let asked = Asked { id, name, record };
    asked
        .decode(bytes)
        .map_err(|undecoded| DnsError::Malformed {
            problem: format!("{undecoded:?}"),
        })
}

/// A name in lower case, as names are compared, without the dot of the root.
fn text_of(name: &Name<'_>) -> String {
    name.to_string().trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_of_the_system() {
        let text =
            "# c\nsearch x\nnameserver 10.0.0.2\nnameserver  fd00::1\nnameserver x\noptions a\n";
        let expected: [SocketAddr; 2] = [
            "10.0.0.2:53".parse().unwrap(),
            "[fd00::1]:53".parse().unwrap(),
        ];
        assert_eq!(servers(text), expected);
        assert_eq!(
            servers(&"nameserver 10.0.0.1\n".repeat(9)).len(),
            MAX_NAME_SERVERS
        );
    }

    #[test]
    fn a_question_is_no_answer_and_neither_is_noise() {
        let (name, record) = ("a.kv", Record::A);
        let asked = Asked {
            id: 7,
            name,
            record,
        };
        let question = asked.encode().unwrap();
        assert!(matches!(asked.decode(&question), Err(Undecoded::Other)));
        assert!(read_answer(b"\0\x07noise", 7, name, record).is_err());
        let long = "x".repeat(64);
        let asked = Asked {
            name: &long,
            ..asked
        };
        assert!(matches!(asked.encode(), Err(DnsError::Name { .. })));
    }
}
