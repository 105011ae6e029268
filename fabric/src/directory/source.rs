//! Where a directory gets its entries from.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use thiserror::Error;

use super::{
    advertise::Audience,
    dns::DNS_PORT,
    entry::{EngineName, EntryError, Node},
    fixed,
};
use crate::limits::MAX_NAME_SERVERS;

/// Where a directory gets its entries from.
///
/// The text form, which `MOAI_DIRECTORY` has:
///
/// | text | source |
/// |---|---|
/// | `static:decode=tcp:10.0.0.7:4000;decode=tcp:10.0.0.8:4000` | this list; an entry a node, with more addresses behind commas |
/// | `file:/etc/moai/directory.json` | a file, read again when it changes |
/// | `dns:kv.example` | `SRV` records of `_moai._tcp.ENGINE.kv.example` |
/// | `dns:kv.example:7000` | `A` and `AAAA` records of `ENGINE.kv.example`, all on that port |
/// | `dns:kv.example@10.0.0.2:53` | the same from this name server instead of those of `/etc/resolv.conf` |
/// | `etcd:http://10.0.0.3:2379,http://10.0.0.4:2379/moai` | keys `/moai/ENGINE/NODE` of etcd |
///
/// ```
/// use moai_fabric::directory::Source;
///
/// let source: Source = "etcd:http://10.0.0.3:2379".parse()?;
/// assert_eq!(source.to_string(), "etcd:http://10.0.0.3:2379/moai");
/// assert!("zookeeper:10.0.0.3".parse::<Source>().is_err());
/// # Ok::<(), moai_fabric::directory::SourceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A list that never changes.
    Static(Vec<(EngineName, Node)>),
    /// A JSON file.
    File(PathBuf),
    /// Name servers.
    Dns(Dns),
    /// An etcd cluster, version 3.4 or later.
    Etcd(Etcd),
}

/// How engines are found by name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dns {
    /// What stands behind an engine's name.
    pub zone: String,
    /// The port of every node, which are then `A` and `AAAA` records; without one they are `SRV` records, which say ports.
    pub port: Option<u16>,
    /// Who is asked; none are those of `/etc/resolv.conf`.
    pub servers: Vec<SocketAddr>,
}

impl Dns {
    /// Engines below a zone, by `SRV` records, from the name servers of this host.
    #[must_use]
    pub fn new(zone: impl Into<String>) -> Self {
        Self {
            zone: zone.into(),
            port: None,
            servers: Vec::new(),
        }
    }
}

/// An etcd cluster, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Etcd {
    /// `http://HOST:PORT` of each member.
    pub endpoints: Vec<String>,
    /// What keys begin with.
    pub prefix: String,
}

impl Etcd {
    /// Keys below [`Etcd::PREFIX`] of a cluster with this member.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoints: vec![endpoint.into()],
            prefix: Self::PREFIX.to_owned(),
        }
    }

    /// What keys begin with, unless told otherwise.
    pub const PREFIX: &'static str = "/moai";
}

impl Source {
    /// Who reads it: where the source itself is on loopback, only this host does.
    #[must_use]
    pub fn audience(&self) -> Audience {
        let here = |endpoint: &String| {
            let host = endpoint.strip_prefix("http://").unwrap_or(endpoint);
            let ip = host.parse::<SocketAddr>().map(|socket| socket.ip());
            ip.is_ok_and(|ip| ip.is_loopback()) || host.starts_with("localhost:")
        };
        match self {
            Self::Etcd(etcd) if etcd.endpoints.iter().all(here) => Audience::ThisHost,
            _ => Audience::OtherHosts,
        }
    }

    /// Name of the kind of source.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Static(_) => "static",
            Self::File(_) => "file",
            Self::Dns(_) => "dns",
            Self::Etcd(_) => "etcd",
        }
    }
}

/// A text names no source.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SourceError {
    /// There is no such kind.
    #[error(
        "is no source; expected static:ENGINE=ADDRESS;…, file:PATH, dns:ZONE or etcd:http://HOST:PORT"
    )]
    Kind,
    /// An entry of a list is not one.
    #[error("has {text:?} where ENGINE=ADDRESS or ENGINE/NODE=ADDRESS,ADDRESS was expected")]
    Form {
        /// What is there.
        text: String,
    },
    /// What an entry says cannot be.
    #[error("has an entry that cannot be: {cause}")]
    Entry {
        /// Why not.
        #[source]
        cause: EntryError,
    },
    /// A path is missing or not from the root on, and so would depend on where the program was started.
    #[error("names the file {text:?}; a path that begins with / was expected")]
    Path {
        /// What is there.
        text: String,
    },
    /// A zone, port or server of DNS cannot be.
    #[error("has {text:?} where {expected} was expected")]
    Dns {
        /// What is there.
        text: String,
        /// What should be.
        expected: &'static str,
    },
    /// An endpoint of etcd cannot be.
    #[error("has the endpoint {text:?}; http://HOST:PORT was expected")]
    Endpoint {
        /// What is there.
        text: String,
    },
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (kind, rest) = text.split_once(':').ok_or(SourceError::Kind)?;
        match kind {
            "static" => fixed::parse(rest).map(Self::Static),
            "file" if rest.starts_with('/') => Ok(Self::File(rest.into())),
            "file" => Err(SourceError::Path { text: rest.into() }),
            "dns" => dns(rest).map(Self::Dns),
            "etcd" => etcd(rest).map(Self::Etcd),
            _ => Err(SourceError::Kind),
        }
    }
}

fn dns(text: &str) -> Result<Dns, SourceError> {
    let fail = |text: &str, expected| SourceError::Dns {
        text: text.to_owned(),
        expected,
    };
    let (name, servers) = text
        .split_once('@')
        .map_or((text, None), |(n, s)| (n, Some(s)));
    let (zone, port) = name
        .split_once(':')
        .map_or((name, None), |(z, p)| (z, Some(p)));
    let port = match port {
        None => None,
        Some(port) => match port.parse() {
            Ok(0) | Err(_) => return Err(fail(port, "a port")),
            Ok(port) => Some(port),
        },
    };
    let zone = zone.trim_end_matches('.');
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        (1..=63).contains(&label.len()) && label.bytes().all(fits)
    };
    // Room for `_moai._tcp.` and an engine's name within the 255 of a domain name.
    if zone.len() > 112 || !zone.split('.').all(label) {
        return Err(fail(zone, "the name of a zone, up to 112 characters"));
    }
    let server = |text: &str| {
        let ip = || text.parse().ok().map(|ip| SocketAddr::new(ip, DNS_PORT));
        let server = text.parse().ok().or_else(ip);
        server.ok_or_else(|| {
            fail(
                text,
                "the address of a name server, as 10.0.0.2 or 10.0.0.2:53",
            )
        })
    };
    let servers: Vec<_> = match servers {
        None => Vec::new(),
        Some(list) => list.split(',').map(server).collect::<Result<_, _>>()?,
    };
    if servers.len() > MAX_NAME_SERVERS {
        return Err(fail(text, "three name servers at most"));
    }
    Ok(Dns {
        zone: zone.to_owned(),
        port,
        servers,
    })
}

fn etcd(text: &str) -> Result<Etcd, SourceError> {
    let mut etcd = Etcd {
        endpoints: Vec::new(),
        prefix: Etcd::PREFIX.to_owned(),
    };
    let mut list = text.split(',').peekable();
    while let Some(url) = list.next() {
        let fail = || SourceError::Endpoint {
            text: url.to_owned(),
        };
        let host = url.strip_prefix("http://").ok_or_else(fail)?;
        let (host, path) = host
            .split_once('/')
            .map_or((host, None), |(h, p)| (h, Some(p)));
        let port = host
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        let plain = host
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"@?#\\".contains(&b));
        if port.is_none_or(|port| port == 0) || !plain || host.starts_with(':') {
            return Err(fail());
        }
        match path.map(|path| path.trim_end_matches('/')) {
            None | Some("") => {}
            // Keys begin with what stands behind the last.
            Some(path) if list.peek().is_none() && path.bytes().all(|b| b.is_ascii_graphic()) => {
                etcd.prefix = format!("/{path}");
            }
            Some(_) => return Err(fail()),
        }
        etcd.endpoints.push(format!("http://{host}"));
    }
    Ok(etcd)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind())?;
        match self {
            Self::Static(list) => f.write_str(&fixed::text(list)),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Dns(dns) => {
                f.write_str(&dns.zone)?;
                if let Some(port) = dns.port {
                    write!(f, ":{port}")?;
                }
                for (i, server) in dns.servers.iter().enumerate() {
                    write!(f, "{}{server}", if i == 0 { '@' } else { ',' })?;
                }
                Ok(())
            }
            Self::Etcd(etcd) => write!(f, "{}{}", etcd.endpoints.join(","), etcd.prefix),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_their_texts() {
        for text in [
            "static:",
            "static:decode/0=tcp:10.0.0.7:4000,shm:@moai/1;decode/1=tcp:10.0.0.8:4000",
            "file:/etc/moai/directory.json",
            "dns:kv.svc.cluster.local",
            "dns:kv:7000",
            "dns:kv:7000@10.0.0.2:53,[fd00::1]:5353",
            "etcd:http://10.0.0.3:2379,http://etcd-1:2379/kv/fleet",
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
        let source: Source = "dns:kv.@10.0.0.2".parse().unwrap();
        assert_eq!(source.to_string(), "dns:kv@10.0.0.2:53");
    }

    #[test]
    fn what_names_no_source_says_what_was_expected() {
        for (text, problem) in [
            ("", "is no source"),
            ("decode=tcp:h:1", "is no source"),
            ("consul:h:1", "is no source"),
            ("static:decode", "ENGINE=ADDRESS"),
            ("static:decode=h", "no colon"),
            ("static:decode=tcp:0.0.0.0:1", "MOAI_ADVERTISE"),
            ("file:here.json", "begins with /"),
            ("dns:", "name of a zone"),
            ("dns:a b", "name of a zone"),
            ("dns:kv:0", "a port"),
            ("dns:kv@here", "a name server"),
            ("etcd:10.0.0.3:2379", "http://HOST:PORT"),
            ("etcd:http://10.0.0.3", "http://HOST:PORT"),
            ("etcd:http://u@h:1", "http://HOST:PORT"),
            ("etcd:http://a:1/x,http://b:1", "http://HOST:PORT"),
            ("etcd:", "http://HOST:PORT"),
        ] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn only_an_etcd_on_loopback_is_read_by_this_host_alone() {
        let audience = |text: &str| text.parse::<Source>().unwrap().audience();
        assert_eq!(audience("etcd:http://127.0.0.1:2379"), Audience::ThisHost);
        assert_eq!(audience("etcd:http://[::1]:2379"), Audience::ThisHost);
        assert_eq!(audience("etcd:http://localhost:2379"), Audience::ThisHost);
        assert_eq!(
            audience("etcd:http://127.0.0.1:1,http://h:1"),
            Audience::OtherHosts
        );
        assert_eq!(audience("file:/x"), Audience::OtherHosts);
    }
}
