//! Engines found by name servers: one on loopback that answers over UDP and TCP, in the wire format.

mod support;

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use moai_fabric::directory::{Directory, Dns, Options, Source};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, RData, SRV},
};
use support::{addresses, engine, until};

const SOON: Duration = Duration::from_secs(20);

/// What a zone has: addresses of hosts, and hosts with ports of services.
#[derive(Default)]
struct Zone {
    hosts: HashMap<String, Vec<IpAddr>>,
    services: HashMap<String, Vec<(u16, String, u16)>>,
    /// Addresses of a service's hosts come along with it.
    with_additional: bool,
    /// Longer answers are cut, and asked for again over TCP.
    udp_bytes: usize,
    code: Option<RCODE>,
}

impl Zone {
    fn answer(&self, question: &[u8], limit: usize) -> Vec<u8> {
        let asked = Packet::parse(question).unwrap();
        let mut reply = asked.clone().into_reply();
        let question = asked.questions[0].clone();
        let name = question.qname.to_string();
        let record = |name: &str, data| {
            ResourceRecord::new(Name::new(name).unwrap().into_owned(), CLASS::IN, 5, data)
        };
        let of_host = |host: &str, kind: TYPE| -> Vec<ResourceRecord<'static>> {
            let ips = self.hosts.get(host).into_iter().flatten();
            ips.filter_map(|ip| match (ip, kind) {
                (IpAddr::V4(ip), TYPE::A) => Some(record(host, RData::A(A::from(*ip)))),
                (IpAddr::V6(ip), TYPE::AAAA) => Some(record(host, RData::AAAA(AAAA::from(*ip)))),
                _ => None,
            })
            .collect()
        };
        match question.qtype {
            QTYPE::TYPE(TYPE::SRV) => {
                for (priority, host, port) in self.services.get(&name).into_iter().flatten() {
                    let target = Name::new(host).unwrap().into_owned();
                    let srv = SRV {
                        priority: *priority,
                        weight: 0,
                        port: *port,
                        target,
                    };
                    reply.answers.push(record(&name, RData::SRV(srv)));
                    if self.with_additional {
                        reply.additional_records.extend(of_host(host, TYPE::A));
                    }
                }
            }
            QTYPE::TYPE(kind) => reply.answers = of_host(&name, kind),
            _ => {}
        }
        if let Some(code) = self.code {
            *reply.rcode_mut() = code;
        } else if !self.hosts.contains_key(&name) && !self.services.contains_key(&name) {
            *reply.rcode_mut() = RCODE::NameError;
        }
        let bytes = reply.build_bytes_vec_compressed().unwrap();
        if bytes.len() <= limit {
            return bytes;
        }
        reply.answers.clear();
        reply.additional_records.clear();
        reply.set_flags(PacketFlag::TRUNCATION);
        reply.build_bytes_vec_compressed().unwrap()
    }
}

/// A server of that zone, until the test's process ends. Before each answer it sends one to another question, as somebody
/// who guesses would.
fn serve(zone: Zone) -> (SocketAddr, Arc<Mutex<Zone>>) {
    let zone = Arc::new(Mutex::new(zone));
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(at).unwrap();
    let of_udp = zone.clone();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((bytes, from)) = udp.recv_from(&mut buffer) {
            let answer = {
                let zone = of_udp.lock().unwrap();
                zone.answer(&buffer[..bytes], zone.udp_bytes)
            };
            let mut guess = answer.clone();
            guess[0] ^= 0xff;
            udp.send_to(&guess, from).unwrap();
            udp.send_to(&answer, from).unwrap();
        }
    });
    let of_tcp = zone.clone();
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(bytes))];
            stream.read_exact(&mut question).unwrap();
            let answer = of_tcp.lock().unwrap().answer(&question, usize::MAX);
            stream
                .write_all(&(answer.len() as u16).to_be_bytes())
                .unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    (at, zone)
}

fn open(server: SocketAddr, port: Option<u16>) -> Directory {
    let mut dns = Dns::new("kv.test");
    dns.port = port;
    dns.servers = vec![server];
    let mut options = Options::default();
    options.period = Duration::from_millis(50);
    options.lease = Duration::from_secs(1);
    Directory::open(Source::Dns(dns), options).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn hosts_of_a_name_are_nodes_and_new_ones_are_found() {
    let hosts = HashMap::from([
        (
            "decode.kv.test".to_owned(),
            vec![ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1")],
        ),
        ("six.kv.test".to_owned(), vec![ip("fd00::7")]),
    ]);
    let (server, zone) = serve(Zone {
        hosts,
        udp_bytes: 512,
        ..Zone::default()
    });
    let directory = open(server, Some(7000));
    let view = directory.watch(&engine("decode")).unwrap();
    let found: Vec<_> = view
        .nodes
        .iter()
        .flat_map(|known| addresses(&known.node))
        .collect();
    assert_eq!(found, ["tcp:10.0.0.1:7000", "tcp:10.0.0.2:7000"]);
    let view = directory.watch(&engine("six")).unwrap();
    assert_eq!(addresses(&view.nodes[0].node), ["tcp:[fd00::7]:7000"]);
    // A name that is not there is an answer.
    let none = directory.watch(&engine("none")).unwrap();
    assert!(none.nodes.is_empty() && none.stale_since.is_none());

    zone.lock().unwrap().hosts.insert(
        "decode.kv.test".into(),
        vec![ip("10.0.0.2"), ip("10.0.0.9")],
    );
    let decode = engine("decode");
    until(&directory, &decode, SOON, |view| {
        let found: Vec<_> = view.listed().flat_map(addresses).collect();
        found == ["tcp:10.0.0.2:7000", "tcp:10.0.0.9:7000"]
    });

    // A server that cannot takes nothing away.
    zone.lock().unwrap().code = Some(RCODE::ServerFailure);
    let view = until(&directory, &decode, SOON, |view| view.stale_since.is_some());
    assert_eq!(view.listed().count(), 2);
    assert!(
        view.problem.as_deref().unwrap().contains("ServerFailure"),
        "{view:?}"
    );
    zone.lock().unwrap().code = None;
    until(&directory, &decode, SOON, |view| view.stale_since.is_none());
}

#[test]
fn services_say_ports_and_their_hosts_are_looked_up() {
    for with_additional in [false, true] {
        let services = HashMap::from([(
            "_moai._tcp.decode.kv.test".to_owned(),
            vec![
                (1, "b.kv.test".into(), 4001),
                (0, "a.kv.test".into(), 4000),
                (2, "gone.kv.test".into(), 4002),
            ],
        )]);
        let hosts = HashMap::from([
            ("a.kv.test".to_owned(), vec![ip("10.0.0.1")]),
            ("b.kv.test".to_owned(), vec![ip("10.0.0.2"), ip("10.1.0.2")]),
        ]);
        let (server, _) = serve(Zone {
            hosts,
            services,
            with_additional,
            udp_bytes: 512,
            code: None,
        });
        let view = open(server, None).watch(&engine("decode")).unwrap();
        let found: Vec<_> = view
            .nodes
            .iter()
            .map(|known| addresses(&known.node))
            .collect();
        assert_eq!(
            found,
            [
                vec!["tcp:10.0.0.1:4000"],
                vec!["tcp:10.0.0.2:4001", "tcp:10.1.0.2:4001"]
            ]
        );
    }
}

#[test]
fn what_does_not_fit_a_datagram_is_asked_for_again() {
    let many: Vec<IpAddr> = (0..200).map(|n| ip(&format!("10.0.1.{n}"))).collect();
    let hosts = HashMap::from([("decode.kv.test".to_owned(), many)]);
    let (server, _) = serve(Zone {
        hosts,
        udp_bytes: 512,
        ..Zone::default()
    });
    let view = open(server, Some(1)).watch(&engine("decode")).unwrap();
    assert_eq!(view.nodes.len(), 200);
}

#[test]
fn nobody_there_is_a_problem_and_no_hang() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let directory = open(silent.local_addr().unwrap(), Some(1));
    let view = directory.watch(&engine("decode")).unwrap();
    assert!(view.seen.is_none() && view.stale_since.is_some());
    let problem = view.problem.as_deref().unwrap();
    assert!(
        problem.contains("does not answer for decode.kv.test"),
        "{problem}"
    );
}
