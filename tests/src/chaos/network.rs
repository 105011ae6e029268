//! A network of the victim's own, joined to the survivor's by one cable, so that it can be cut off.

use std::{
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// A namespace, kept by a process that sleeps in it; it ends with that, and with it the cable.
#[derive(Debug)]
pub(super) struct Network {
    keeper: Child,
    cable: String,
    /// Addresses of the survivor's end, and of the victim's.
    pub(super) ends: [String; 2],
}

/// How it is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Packets are dropped in silence.
    Drop,
    /// Connections are reset.
    Reset,
    /// The link is down.
    Down,
}

/// Whether networks can be made here.
///
/// # Errors
///
/// What is missing.
pub fn available() -> Result<(), String> {
    run("ip", &["-V"])?;
    run("nsenter", &["--version"])?;
    // By which it is also known whether this process may.
    run("unshare", &["-n", "nft", "add", "table", "inet", "chaos"])
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let told = |why: String| format!("{program} {}: {why}", arguments.join(" "));
    let out = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let out = out.map_err(|error| told(error.to_string()))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(told(String::from_utf8_lossy(&out.stderr).trim().to_owned())),
    }
}

impl Network {
    pub(super) fn make() -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id()
            .wrapping_mul(8)
            .wrapping_add(MADE.fetch_add(1, Ordering::Relaxed));
        let keeper = Command::new("unshare")
            .args(["-n", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn();
        // Networks of four addresses, which nobody else has on a host that runs tests.
        let (third, fourth) = (number / 64 % 256, number % 64 * 4);
        let end = |last: u32| format!("10.213.{third}.{}", fourth + last);
        let network = Self {
            keeper: keeper.map_err(|error| format!("unshare: {error}"))?,
            cable: format!("mv{:x}", number % 0xFFF_FFFF),
            ends: [end(1), end(2)],
        };
        let pid = network.keeper.id().to_string();
        let own = std::fs::read_link("/proc/self/ns/net").map_err(|error| error.to_string())?;
        let start = Instant::now();
        while std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == own) {
            if start.elapsed() > Duration::from_secs(5) {
                return Err("unshare makes no namespace".to_owned());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (here, there) = (format!("{}a", network.cable), format!("{}b", network.cable));
        let ours = format!("{}/30", network.ends[0]);
        let theirs = format!("{}/30", network.ends[1]);
        run(
            "ip",
            &[
                "link", "add", "name", &here, "type", "veth", "peer", "name", &there, "netns", &pid,
            ],
        )?;
        run("ip", &["addr", "add", &ours, "dev", &here])?;
        run("ip", &["link", "set", "dev", &here, "up"])?;
        network.inside(&["ip", "link", "set", "dev", "lo", "up"])?;
        network.inside(&["ip", "addr", "add", &theirs, "dev", &there])?;
        network.inside(&["ip", "link", "set", "dev", &there, "up"])?;
        Ok(network)
    }

    /// The command that starts something inside.
    pub(super) fn prefix(&self) -> Vec<String> {
        let pid = self.keeper.id().to_string();
        ["nsenter", "-t", &pid, "-n"].map(str::to_owned).into()
    }

    fn inside(&self, command: &[&str]) -> Result<(), String> {
        let pid = self.keeper.id().to_string();
        run("nsenter", &[&["-t", &pid, "-n"], command].concat())
    }

    pub(super) fn cut(&self, how: Cut) -> Result<(), String> {
        let verdict = match how {
            Cut::Drop => "drop",
            Cut::Reset => "reject with tcp reset",
            Cut::Down => {
                let there = format!("{}b", self.cable);
                return self.inside(&["ip", "link", "set", "dev", &there, "down"]);
            }
        };
        let rules = format!(
            "table inet chaos {{
                chain in {{ type filter hook input priority 0; meta l4proto tcp {verdict}; }}
                chain out {{ type filter hook output priority 0; meta l4proto tcp {verdict}; }}
            }}"
        );
        self.inside(&["sh", "-c", &format!("echo '{rules}' | nft -f -")])
    }

    pub(super) fn mend(&self, how: Cut) -> Result<(), String> {
        match how {
            Cut::Down => {
                let there = format!("{}b", self.cable);
                self.inside(&["ip", "link", "set", "dev", &there, "up"])
            }
            Cut::Drop | Cut::Reset => self.inside(&["nft", "delete", "table", "inet", "chaos"]),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
