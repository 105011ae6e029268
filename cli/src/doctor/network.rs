//! Interfaces, routes, what is advertised, and TCP.

use moai_fabric::{config::Config, directory::advertise};

use super::{Finding, root::Root};

/// From where on the MTU shows: a packet of 1500 bytes each 1.2 µs.
const FAST_MBIT_S: i64 = 10_000;
const JUMBO_MTU: i64 = 9000;
/// What 25 Gb/s has under way in 5 ms.
const ENOUGH_BUFFER_BYTES: u64 = 16 << 20;
/// Consumers that come at once.
const ENOUGH_BACKLOG: i64 = 1024;

pub(super) fn interfaces(root: &Root) -> Vec<Finding> {
    const WHY: &str = "a larger MTU costs less processor time a byte, if all on the way have it";
    let mut findings = Vec::new();
    for name in root.names("/sys/class/net") {
        let of = |file: &str| format!("/sys/class/net/{name}/{file}");
        // Loopback, and what is down, carry nothing between hosts.
        let is_up = root
            .text(&of("operstate"))
            .is_some_and(|state| state == "up");
        let Some(mtu) = root.number(&of("mtu")).filter(|_| is_up) else {
            continue;
        };
        let speed = root.number(&of("speed")).filter(|&speed| speed > 0);
        let found = match speed {
            Some(speed) => format!("{name}: MTU {mtu}, {speed} Mb/s"),
            None => format!("{name}: MTU {mtu}"),
        };
        let is_short = mtu < JUMBO_MTU && speed.is_some_and(|speed| speed >= FAST_MBIT_S);
        findings.push(match is_short {
            false => Finding::ok("network", found, WHY),
            true => Finding::note("network", found, WHY)
                .mended_by(format!("sudo ip link set {name} mtu {JUMBO_MTU}")),
        });
    }
    findings
}

pub(super) fn route(root: &Root) -> Finding {
    const WHY: &str = "what a node advertises, unless told, is its address on the default route";
    let v4 = root.text("/proc/net/route").unwrap_or_default();
    let v4 = v4.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (name, destination) = (words.next()?, words.next()?);
        (destination == "00000000").then(|| name.to_owned())
    });
    let v6 = root.text("/proc/net/ipv6_route").unwrap_or_default();
    let v6 = v6.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_default = words.first()?.bytes().all(|b| b == b'0') && *words.get(1)? == "00";
        words
            .get(9)
            .filter(|name| is_default && **name != "lo")
            .map(|name| (*name).to_owned())
    });
    match v4.or(v6) {
        Some(name) => Finding::ok("route", format!("by default over {name}"), WHY),
        None => Finding::note("route", "no default route", WHY)
            .mended_by("export MOAI_ADVERTISE=10.0.0.7"),
    }
}

/// What peers would be told to connect to, if this were the host.
pub(super) fn advertise(root: &Root, config: &Config) -> Option<Finding> {
    const WHY: &str = "peers on other hosts connect to it";
    if !root.is_here() {
        return None;
    }
    let audience = match &config.directory {
        Some(source) => source.audience(),
        // Without a directory whoever starts both sides tells addresses.
        None if config.advertise.is_none() && config.bind.ip().is_loopback() => {
            return Some(
                Finding::note("advertise", format!("{}, this host only", config.bind), WHY)
                    .mended_by("export MOAI_BIND=0.0.0.0:0 MOAI_INSECURE=1"),
            );
        }
        None => advertise::Audience::OtherHosts,
    };
    Some(
        match advertise::choose(config.bind, config.advertise, None, audience) {
            Ok(address) => Finding::ok("advertise", address.to_string(), WHY),
            Err(error) => Finding::problem(
                "advertise",
                error.to_string(),
                WHY,
                "export MOAI_ADVERTISE=10.0.0.7",
            ),
        },
    )
}

pub(super) fn tcp(root: &Root) -> Vec<Finding> {
    let net = |name: &str| root.text(&format!("/proc/sys/net/{name}"));
    let mut findings = Vec::new();
    if let Some(control) = net("ipv4/tcp_congestion_control") {
        const WHY: &str = "cubic and dctcp suit a machine room, bbr lossy ways";
        findings.push(match control.as_str() {
            "reno" => Finding::note("tcp", "congestion control reno", WHY)
                .mended_by("sudo sysctl -w net.ipv4.tcp_congestion_control=cubic"),
            other => Finding::ok("tcp", format!("congestion control {other}"), WHY),
        });
    }
    for (name, what) in [("tcp_rmem", "receive"), ("tcp_wmem", "send")] {
        const WHY: &str = "a connection has no more under way than its buffers hold";
        let Some(sizes) = net(&format!("ipv4/{name}")) else {
            continue;
        };
        let words: Vec<u64> = sizes
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [least, usual, most] = words[..] else {
            continue;
        };
        let found = format!("{what} buffers up to {}", crate::picture::bytes(most));
        findings.push(match most < ENOUGH_BUFFER_BYTES {
            false => Finding::ok("tcp", found, WHY),
            true => Finding::note("tcp", found, WHY).mended_by(format!(
                "sudo sysctl -w net.ipv4.{name}='{least} {usual} {}'",
                4 * ENOUGH_BUFFER_BYTES
            )),
        });
    }
    if let Some(most) = root.number("/proc/sys/net/core/somaxconn") {
        const WHY: &str = "peers that come at once wait there to be taken";
        let found = format!("a queue of {most} for listeners");
        findings.push(match most < ENOUGH_BACKLOG {
            false => Finding::ok("tcp", found, WHY),
            true => {
                Finding::note("tcp", found, WHY).mended_by("sudo sysctl -w net.core.somaxconn=4096")
            }
        });
    }
    findings
}
