//! Configuration: typed, and the one place that reads the environment.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use moai_memory::MemoryKind;
use thiserror::Error;

use crate::{directory::Source, providers};

mod protection;

use protection::Protection;

pub use moai_transport_tcp::{CertificateFiles, Security};

/// Everything that can be chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where a producer rank listens; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Allow addresses off loopback without [`security`](Self::security): whoever reaches the port can read the cache,
    /// and whoever is on the way can change it.
    pub insecure: bool,
    /// How peers over tcp prove who they are. With it, addresses off loopback are allowed, and shm only if it is named
    /// among [`transports`](Self::transports), since it asks nobody who they are.
    pub security: Security,
    /// Whether payload is encrypted as well, where links are protected; if neither side asks for it, it is not.
    pub seal_payload: bool,
    /// From the start of a transfer to its outcome, at most.
    pub deadline: Duration,
    /// Payload bytes a second that one producer rank sends at most.
    pub max_bytes_per_second: Option<u64>,
    /// Outgoing payload that one peer can have queued; at least 4 MiB. Costs that much memory a peer.
    pub staging_bytes: u32,
    /// Transports that may be used, the first that reaches a peer before the others; `None` is any, the best first.
    pub transports: Option<Vec<String>>,
    /// Shared objects whose transports are used beside those of this build; see
    /// [`add_providers`](Self::add_providers).
    pub providers: Vec<PathBuf>,
    /// Transports of which it must be one; without a path by one of them nothing is transferred.
    pub require_path: Option<Vec<String>>,
    /// What consumers are told to connect to over tcp, where it is not what `bind` says: behind a translation of
    /// addresses, or when listening on all. Port 0 stands for the one that is listened on.
    pub advertise: Option<SocketAddr>,
    /// Ports to listen on, the first that is free, instead of the one of `bind`; both included.
    pub ports: Option<(u16, u16)>,
    /// Connections that one peer's one-sided operations over tcp are spread over; of two peers, the one with fewer
    /// decides.
    pub tcp_lanes: u32,
    /// How long a wait looks for work before it sleeps: saves waking up, and takes the time from whoever else wants
    /// the core. `None` is what each transport finds best.
    pub spin: Option<Duration>,
    /// Where both sides' pools lie. `None` is where every transport that is allowed reaches them best: shared memory for
    /// producers if shm is one of these, and host memory. In memory of a device, rows are copied once more on each side,
    /// and no pages are mapped.
    pub memory: Option<MemoryKind>,
    /// Where engines are found by name; `None` where peers are told by other means.
    pub directory: Option<Source>,
    /// Where metrics and readiness are told over HTTP; `None` is nowhere.
    pub metrics: Option<SocketAddr>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            insecure: false,
            security: Security::None,
            seal_payload: true,
            deadline: Duration::from_secs(60),
            max_bytes_per_second: None,
            staging_bytes: moai_transport::limits::STAGING_RING_BYTES,
            transports: None,
            providers: Vec::new(),
            require_path: None,
            advertise: None,
            ports: None,
            tcp_lanes: 1,
            spin: None,
            memory: None,
            directory: None,
            metrics: None,
        }
    }
}

/// A setting cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name}={value}: {problem}")]
#[non_exhaustive]
pub struct ConfigError {
    /// The variable or option.
    pub name: String,
    /// What it was set to.
    pub value: String,
    /// What is wrong, and what was expected.
    pub problem: String,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it does and costs.
    pub help: &'static str,
    /// Its value, and whether the environment set it.
    pub value: String,
    /// Whether the environment set it.
    pub set: bool,
}

/// Variables of the configuration, then those that only tests and logs read.
const VARIABLES: [(&str, &str); 24] = [
    ("MOAI_BIND", "address that producer ranks listen on"),
    (
        "MOAI_INSECURE",
        "1 allows addresses off loopback, without authentication or encryption",
    ),
    (
        "MOAI_TLS_CERT",
        "our certificate, in PEM, with those of intermediate authorities behind it; with it links over tcp are TLS",
    ),
    (
        "MOAI_TLS_KEY",
        "its private key, in PEM; not readable by everyone",
    ),
    (
        "MOAI_TLS_CA",
        "certificates of the authorities that sign those of peers, in PEM",
    ),
    (
        "MOAI_ALLOW",
        "who may be a peer: SPIFFE IDs, prefixes of them as spiffe://cluster/ns/*, DNS names, or * for all that MOAI_TLS_CA signs",
    ),
    (
        "MOAI_SHARED_KEY_FILE",
        "a private key that all peers hold, in PEM, instead of certificates; not readable by everyone",
    ),
    (
        "MOAI_TLS_PAYLOAD",
        "off sends payload as it is, where both sides say so: anybody on the way reads and changes it",
    ),
    (
        "MOAI_DEADLINE",
        "seconds from the start of a transfer to its outcome",
    ),
    (
        "MOAI_MAX_RATE",
        "payload bytes a second that one producer rank sends at most; 0 is no limit",
    ),
    (
        "MOAI_STAGING_BYTES",
        "outgoing payload that one peer can have queued",
    ),
    (
        "MOAI_TRANSPORTS",
        "transports that may be used, in this order; auto is all, the best first",
    ),
    (
        "MOAI_REQUIRE_PATH",
        "transports of which it must be one, or nothing is transferred",
    ),
    (
        "MOAI_PROVIDERS",
        "shared objects with more transports and devices, separated by colons; they run as part of this program",
    ),
    (
        "MOAI_ADVERTISE",
        "host, or host and port, that consumers are told to connect to over tcp, where it is not `MOAI_BIND`",
    ),
    (
        "MOAI_PORTS",
        "ports to try instead of that of `MOAI_BIND`, as 4000-4015; 0 is none",
    ),
    (
        "MOAI_TCP_LANES",
        "connections that one peer's one-sided operations over tcp are spread over",
    ),
    (
        "MOAI_SPIN",
        "microseconds that a wait looks for work before it sleeps; auto is what each transport finds best",
    ),
    (
        "MOAI_MEMORY",
        "where both sides' pools lie: host, pinned, shared or sim, a simulated device; auto is what each transport reaches best",
    ),
    (
        "MOAI_DIRECTORY",
        "where engines are found by name: static:…, file:PATH, dns:ZONE or etcd:URL",
    ),
    (
        "MOAI_METRICS",
        "port, on loopback, or address and port where metrics and readiness are told over HTTP",
    ),
    (
        "MOAI_LOG",
        "what to log on stderr: error, warn, debug, trace, or by module",
    ),
    ("MOAI_REQUIRE", "test batteries whose absence is a failure"),
    ("MOAI_SEED", "seed of seeded tests"),
];

/// A second: whoever spins longer does not want to sleep at all.
const MAX_SPIN_MICROS: u64 = 1_000_000;

/// Prefix of all variables.
const PREFIX: &str = "MOAI_";

/// What the environment says a variable is, if it says anything: of [`Config::variables`], which tell what it comes to.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?;
    Some(value.to_string_lossy().into_owned())
}

/// What to log, by `MOAI_LOG`.
#[must_use]
pub fn log_filter() -> String {
    variable("MOAI_LOG").unwrap_or_else(|| "warn".into())
}

/// Others read these: test batteries, the Python package and the build of its wheel.
const OF_OTHERS: [&str; 3] = ["MOAI_CASES", "MOAI_FABRIC_LIBRARY", "MOAI_WHEEL_PROFILE"];

impl Config {
    /// The defaults, changed by `MOAI_*` variables.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a value cannot be, or if a variable with our prefix is not known: a
    /// misspelt setting must not silently mean its default.
    pub fn from_env() -> Result<Self, ConfigError> {
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            name.starts_with(PREFIX)
                .then(|| (name, value.to_string_lossy().into_owned()))
        });
        Self::from_vars(vars)
    }

    /// As [`from_env`](Self::from_env), with the variables given.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn from_vars(vars: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut protection = Protection::default();
        // What is loaded can be named by the others.
        let mut vars: Vec<_> = vars.collect();
        vars.sort_by_key(|(name, _)| name != "MOAI_PROVIDERS");
        for (name, value) in vars {
            let fail = |problem: String| ConfigError {
                name: name.clone(),
                value: value.clone(),
                problem,
            };
            match name.as_str() {
                "MOAI_BIND" => {
                    config.bind = value
                        .parse()
                        .map_err(|_| fail("is no address and port, as 127.0.0.1:0".into()))?;
                }
                "MOAI_INSECURE" => {
                    config.insecure = match value.as_str() {
                        "1" => true,
                        "0" | "" => false,
                        _ => return Err(fail("is neither 0 nor 1".into())),
                    };
                }
                name if protection.takes(name, &value).map_err(fail)? => {}
                "MOAI_TLS_PAYLOAD" => {
                    config.seal_payload = match value.as_str() {
                        "on" | "" => true,
                        "off" => false,
                        _ => return Err(fail("is neither on nor off".into())),
                    };
                }
                "MOAI_DEADLINE" => {
                    let seconds: f64 = value
                        .parse()
                        .map_err(|_| fail("is no number of seconds".into()))?;
                    config.deadline = deadline(seconds).map_err(fail)?;
                }
                "MOAI_MAX_RATE" => {
                    let rate: u64 = value
                        .parse()
                        .map_err(|_| fail("is no number of bytes a second".into()))?;
                    config.max_bytes_per_second = Some(rate).filter(|&rate| rate > 0);
                }
                "MOAI_STAGING_BYTES" => {
                    let (least, most) = (
                        moai_transport::limits::MAX_BATCH_BYTES,
                        moai_transport::limits::MAX_STAGING_RING_BYTES,
                    );
                    let bytes: u32 = value
                        .parse()
                        .map_err(|_| fail("is no number of bytes".into()))?;
                    if !(least..=most).contains(&bytes) {
                        return Err(fail(format!("is not between {least} and {most}")));
                    }
                    config.staging_bytes = bytes;
                }
                "MOAI_TRANSPORTS" => config.transports = transports(&value).map_err(fail)?,
                "MOAI_PROVIDERS" => config.add_providers(&value).map_err(fail)?,
                "MOAI_REQUIRE_PATH" => config.require_path = transports(&value).map_err(fail)?,
                "MOAI_ADVERTISE" => {
                    let socket = || {
                        let host = value
                            .parse()
                            .ok()
                            .map(|host: IpAddr| SocketAddr::new(host, 0));
                        value.parse().ok().or(host)
                    };
                    config.advertise = match value.as_str() {
                        "" => None,
                        _ => Some(socket().ok_or_else(|| {
                            fail("is no address of a host, as 10.0.0.7 or 10.0.0.7:4000".into())
                        })?),
                    };
                }
                "MOAI_PORTS" => config.ports = ports(&value).map_err(fail)?,
                "MOAI_TCP_LANES" => {
                    let most = moai_transport::limits::MAX_LANES;
                    let lanes = value
                        .parse()
                        .ok()
                        .filter(|lanes| (1..=most).contains(lanes));
                    config.tcp_lanes =
                        lanes.ok_or_else(|| fail(format!("is not between 1 and {most}")))?;
                }
                "MOAI_SPIN" => {
                    let micros = || {
                        value
                            .parse()
                            .ok()
                            .filter(|&micros| micros <= MAX_SPIN_MICROS)
                    };
                    let fail = || {
                        fail(format!(
                            "is not auto and not between 0 and {MAX_SPIN_MICROS}"
                        ))
                    };
                    config.spin = match value.as_str() {
                        "auto" => None,
                        _ => Some(Duration::from_micros(micros().ok_or_else(fail)?)),
                    };
                }
                "MOAI_MEMORY" => config.memory = memory(&value).map_err(fail)?,
                "MOAI_METRICS" => config.metrics = metrics(&value).map_err(fail)?,
                "MOAI_DIRECTORY" => {
                    let source = |text: &str| text.parse::<Source>();
                    config.directory = match value.as_str() {
                        "" => None,
                        text => Some(source(text).map_err(|error| fail(error.to_string()))?),
                    };
                }
                other => {
                    let known = VARIABLES.iter().any(|(name, _)| *name == other)
                        || OF_OTHERS.contains(&other);
                    if !known {
                        let names: Vec<_> = VARIABLES.iter().map(|(name, _)| *name).collect();
                        return Err(fail(format!(
                            "is not known; the variables are {}",
                            names.join(", ")
                        )));
                    }
                }
            }
        }
        config.security = protection.security()?;
        Ok(config)
    }

    /// Every variable with its effective value.
    #[must_use]
    pub fn variables(&self) -> Vec<Variable> {
        let effective = |name: &str| match name {
            "MOAI_BIND" => self.bind.to_string(),
            "MOAI_INSECURE" => u8::from(self.insecure).to_string(),
            "MOAI_TLS_PAYLOAD" => if self.seal_payload { "on" } else { "off" }.to_owned(),
            "MOAI_DEADLINE" => self.deadline.as_secs_f64().to_string(),
            "MOAI_MAX_RATE" => self.max_bytes_per_second.unwrap_or(0).to_string(),
            "MOAI_STAGING_BYTES" => self.staging_bytes.to_string(),
            "MOAI_TRANSPORTS" => list(self.transports.as_deref(), "auto"),
            "MOAI_PROVIDERS" => {
                let paths = self.providers.iter().map(|path| path.display().to_string());
                paths.collect::<Vec<_>>().join(":")
            }
            "MOAI_REQUIRE_PATH" => list(self.require_path.as_deref(), ""),
            "MOAI_ADVERTISE" => self
                .advertise
                .map_or_else(String::new, |host| host.to_string()),
            "MOAI_PORTS" => match self.ports {
                None => "0".to_owned(),
                Some((first, last)) => format!("{first}-{last}"),
            },
            "MOAI_TCP_LANES" => self.tcp_lanes.to_string(),
            "MOAI_SPIN" => {
                let micros = |spin: Duration| spin.as_micros().to_string();
                self.spin.map_or_else(|| "auto".to_owned(), micros)
            }
            "MOAI_MEMORY" => {
                let named = |kind: MemoryKind| kind.to_string();
                self.memory.map_or_else(|| "auto".to_owned(), named)
            }
            "MOAI_METRICS" => {
                { self.metrics }.map_or_else(String::new, |address| address.to_string())
            }
            "MOAI_DIRECTORY" => {
                let named = |source: &Source| source.to_string();
                self.directory.as_ref().map_or_else(String::new, named)
            }
            other => protection::value(&self.security, other)
                .unwrap_or_else(|| std::env::var(other).unwrap_or_default()),
        };
        VARIABLES
            .iter()
            .map(|&(name, help)| Variable {
                name,
                help,
                value: effective(name),
                set: std::env::var_os(name).is_some(),
            })
            .collect()
    }

    /// Loads shared objects, separated by colons, whose transports are used beside those of this build. They run as part
    /// of this program: only those that may be linked.
    ///
    /// # Errors
    ///
    /// A sentence with the file and what is wrong with it; none of them is used then.
    pub fn add_providers(&mut self, paths: &str) -> Result<(), String> {
        let mut all = self.providers.clone();
        for path in paths.split(':').filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            if !all.contains(&path) {
                all.push(path);
            }
        }
        providers::check(&all)?;
        self.providers = all;
        Ok(())
    }

    /// Whether a transport may be used.
    #[must_use]
    pub fn allows(&self, transport: &str) -> bool {
        let named = |list: &Option<Vec<String>>| match list {
            // It asks nobody who they are, or nobody knows whether it does: with links that do, only by name.
            None => transport == "tcp" || !self.security.is_on(),
            Some(names) => names.iter().any(|name| name == transport),
        };
        named(&self.transports)
    }

    /// Where producers' pools lie.
    pub(crate) fn pool_kind(&self) -> MemoryKind {
        match self.memory {
            Some(kind) => kind,
            None if self.allows("shm") => MemoryKind::Shared,
            None => MemoryKind::Host,
        }
    }

    /// Where consumers' pools lie.
    pub(crate) fn target_kind(&self) -> MemoryKind {
        self.memory.unwrap_or(MemoryKind::Host)
    }

    /// Whether an address may be used.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it is off loopback, links are not protected, and `insecure` is not set.
    pub fn allow(&self, address: SocketAddr) -> Result<(), ConfigError> {
        if address.ip().is_loopback() || self.security.is_on() || self.insecure {
            return Ok(());
        }
        Err(ConfigError {
            name: "address".into(),
            value: address.to_string(),
            problem: "is off loopback, and links are not protected: give certificates (MOAI_TLS_CERT, MOAI_TLS_KEY, MOAI_TLS_CA and MOAI_ALLOW, or --tls) or a shared key (MOAI_SHARED_KEY_FILE), which `moai keys init` makes; --insecure or MOAI_INSECURE=1 goes without".into(),
        })
    }
}

/// Names of transports, separated by commas; `auto` and nothing are no choice.
///
/// # Errors
///
/// What is wrong with them.
pub fn transports(names: &str) -> Result<Option<Vec<String>>, String> {
    if names.is_empty() || names == "auto" {
        return Ok(None);
    }
    let mut list: Vec<String> = Vec::new();
    for name in names.split(',').map(str::trim) {
        let names = providers::names();
        if !names.contains(&name) {
            let known = names.join(", ");
            return Err(format!(
                "names {name:?}, which is no transport of this build; there is {known}, and auto"
            ));
        }
        if !list.iter().any(|other| other == name) {
            list.push(name.to_owned());
        }
    }
    Ok(Some(list))
}

/// A kind of memory; `auto` and nothing are no choice.
///
/// # Errors
///
/// What is wrong with it.
pub fn memory(kind: &str) -> Result<Option<MemoryKind>, String> {
    match kind {
        "" | "auto" => Ok(None),
        kind => {
            let unknown = |error: moai_memory::UnknownKind| format!("is not: {error}, and auto");
            kind.parse().map(Some).map_err(unknown)
        }
    }
}

fn list(names: Option<&[String]>, none: &str) -> String {
    names.map_or_else(|| none.to_owned(), |names| names.join(","))
}

/// A port alone is on loopback: what is told is not for everybody.
fn metrics(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let port = || text.trim_start_matches(':').parse().ok();
    let here = || Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port()?));
    match text.parse().ok().or_else(here) {
        Some(address) => Ok(Some(address)),
        None => Err("is no port and no address with one, as 9464 or 0.0.0.0:9464".into()),
    }
}

fn ports(text: &str) -> Result<Option<(u16, u16)>, String> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Some((first, last))),
        _ => Err("is no port and no range of them, as 4000-4015".into()),
    }
}

/// A deadline in seconds.
///
/// # Errors
///
/// What is wrong with it.
pub fn deadline(seconds: f64) -> Result<Duration, String> {
    // A year: whoever means for ever has not decided what to do when a peer dies.
    if seconds.is_finite() && seconds > 0.0 && seconds <= 31_536_000.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("is not a number of seconds above 0 and up to a year".into())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for variable in self.variables() {
            writeln!(f, "{}={}", variable.name, variable.value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Config, ConfigError> {
        Config::from_vars([(name.to_owned(), value.to_owned())].into_iter())
    }

    #[test]
    fn variables_change_the_defaults_and_nonsense_is_named() {
        assert_eq!(
            read("MOAI_DEADLINE", "2.5").unwrap().deadline,
            Duration::from_millis(2500)
        );
        assert_eq!(
            read("MOAI_MAX_RATE", "1000").unwrap().max_bytes_per_second,
            Some(1000)
        );
        assert!(read("MOAI_INSECURE", "1").unwrap().insecure);
        for (name, value) in [
            ("MOAI_DEADLINE", "0"),
            ("MOAI_DEADLINE", "inf"),
            ("MOAI_DEADLINE", "soon"),
            ("MOAI_BIND", "here"),
            ("MOAI_INSECURE", "yes"),
            ("MOAI_STAGING_BYTES", "17"),
            ("MOAI_TRANSPORTS", "pigeon"),
            ("MOAI_REQUIRE_PATH", "tcp,"),
            ("MOAI_ADVERTISE", "here"),
            ("MOAI_TCP_LANES", "0"),
            ("MOAI_SPIN", "1000001"),
            ("MOAI_DIRECTORY", "etcd:10.0.0.3:2379"),
            ("MOAI_DIRECTORY", "file:here"),
            ("MOAI_METRICS", "everywhere"),
            ("MOAI_METRICS", "65536"),
            ("MOAI_TLS_PAYLOAD", "maybe"),
            ("MOAI_ALLOW", "spiffe://c/n*"),
            ("MOAI_PORTS", "9-8"),
            ("MOAI_PORTS", "0-8"),
            ("MOAI_DEADLIN", "3"),
        ] {
            let error = read(name, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}={value}: ")), "{error}");
        }
        for (name, _) in VARIABLES {
            assert!(
                !read(name, "0").is_err_and(|e| e.problem.contains("not known")),
                "{name}"
            );
        }
    }

    #[test]
    fn transports_and_ports_are_lists() {
        assert_eq!(read("MOAI_TRANSPORTS", "auto").unwrap(), Config::default());
        let config = read("MOAI_TRANSPORTS", "tcp,tcp").unwrap();
        assert_eq!(config.transports, Some(vec!["tcp".to_owned()]));
        assert!(config.allows("tcp") && !config.allows("udp"));
        let config = read("MOAI_PORTS", "7-9").unwrap();
        assert_eq!(config.ports, Some((7, 9)));
        assert_eq!(read("MOAI_PORTS", "7").unwrap().ports, Some((7, 7)));
        let advertise = |value| read("MOAI_ADVERTISE", value).unwrap().advertise.unwrap();
        assert_eq!(advertise("10.0.0.7"), "10.0.0.7:0".parse().unwrap());
        assert_eq!(advertise("[::1]:4"), "[::1]:4".parse().unwrap());
    }

    #[test]
    fn metrics_are_told_on_loopback_unless_told_where() {
        let metrics = |text| {
            read("MOAI_METRICS", text)
                .unwrap()
                .metrics
                .unwrap()
                .to_string()
        };
        assert_eq!(metrics("9464"), "127.0.0.1:9464");
        assert_eq!(metrics(":9464"), "127.0.0.1:9464");
        assert_eq!(metrics("0.0.0.0:9464"), "0.0.0.0:9464");
    }

    #[test]
    fn a_directory_is_read_and_told_as_it_is_written() {
        let text = "static:decode/0=tcp:10.0.0.7:4000";
        let config = read("MOAI_DIRECTORY", text).unwrap();
        let variables = config.variables();
        let told = variables.iter().find(|v| v.name == "MOAI_DIRECTORY");
        assert_eq!(told.unwrap().value, text);
        assert_eq!(read("MOAI_DIRECTORY", "").unwrap().directory, None);
    }

    #[test]
    fn off_loopback_must_be_asked_for() {
        let config = Config::default();
        assert!(config.allow("127.0.0.1:80".parse().unwrap()).is_ok());
        assert!(config.allow("[::1]:80".parse().unwrap()).is_ok());
        for off in ["10.0.0.1:80", "0.0.0.0:0", "[::]:0"] {
            let off = off.parse().unwrap();
            assert!(
                config
                    .allow(off)
                    .unwrap_err()
                    .to_string()
                    .contains("--insecure")
            );
            assert!(
                Config {
                    insecure: true,
                    ..Config::default()
                }
                .allow(off)
                .is_ok()
            );
        }
    }
}
