//! Configuration: typed, and the one place that reads the environment.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use thiserror::Error;

/// Everything that can be chosen.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Where a producer rank listens; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Allow addresses off loopback. Nothing is authenticated or encrypted in this release, so whoever
    /// reaches the port can read the cache.
    pub insecure: bool,
    /// From the start of a transfer to its outcome, at most.
    pub deadline: Duration,
    /// Payload bytes a second that one producer rank sends at most.
    pub max_bytes_per_second: Option<u64>,
    /// Outgoing payload that one peer can have queued; at least 4 MiB. Costs that much memory a peer.
    pub staging_bytes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            insecure: false,
            deadline: Duration::from_secs(60),
            max_bytes_per_second: None,
            staging_bytes: moai_transport::limits::STAGING_RING_BYTES,
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
const VARIABLES: [(&str, &str); 8] = [
    ("MOAI_BIND", "address that producer ranks listen on"),
    (
        "MOAI_INSECURE",
        "1 allows addresses off loopback, without authentication or encryption",
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
        "MOAI_LOG",
        "what to log on stderr: error, warn, debug, trace, or by module",
    ),
    ("MOAI_REQUIRE", "test batteries whose absence is a failure"),
    ("MOAI_SEED", "seed of seeded tests"),
];

/// Prefix of all variables.
const PREFIX: &str = "MOAI_";

/// Test batteries also read these.
const TESTS_ONLY: [&str; 1] = ["MOAI_CASES"];

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
                other => {
                    let known = VARIABLES.iter().any(|(name, _)| *name == other)
                        || TESTS_ONLY.contains(&other);
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
        Ok(config)
    }

    /// Every variable with its effective value.
    #[must_use]
    pub fn variables(&self) -> Vec<Variable> {
        let effective = |name: &str| match name {
            "MOAI_BIND" => self.bind.to_string(),
            "MOAI_INSECURE" => u8::from(self.insecure).to_string(),
            "MOAI_DEADLINE" => self.deadline.as_secs_f64().to_string(),
            "MOAI_MAX_RATE" => self.max_bytes_per_second.unwrap_or(0).to_string(),
            "MOAI_STAGING_BYTES" => self.staging_bytes.to_string(),
            other => std::env::var(other).unwrap_or_default(),
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

    /// Whether an address may be used.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it is off loopback and `insecure` is not set.
    pub fn allow(&self, address: SocketAddr) -> Result<(), ConfigError> {
        if address.ip().is_loopback() || self.insecure {
            return Ok(());
        }
        Err(ConfigError {
            name: "address".into(),
            value: address.to_string(),
            problem: "is off loopback, and this release neither authenticates nor encrypts; --insecure or MOAI_INSECURE=1 allows it".into(),
        })
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
