//! How links are protected, as the environment says it.

use std::path::PathBuf;

use moai_transport::AllowList;

use super::{CertificateFiles, ConfigError, Security};

const CERTIFICATE: &str = "MOAI_TLS_CERT";
const KEY: &str = "MOAI_TLS_KEY";
const AUTHORITIES: &str = "MOAI_TLS_CA";
const ALLOW: &str = "MOAI_ALLOW";
const SHARED: &str = "MOAI_SHARED_KEY_FILE";

/// Variables that have been seen so far. Empty ones are as good as none.
#[derive(Debug, Default)]
pub(super) struct Protection {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    authorities: Option<PathBuf>,
    allow: Option<AllowList>,
    shared: Option<PathBuf>,
}

impl Protection {
    /// Takes a variable; false if it is another one.
    ///
    /// # Errors
    ///
    /// What is wrong with its value.
    pub(super) fn takes(&mut self, name: &str, value: &str) -> Result<bool, String> {
        let path = (!value.is_empty()).then(|| PathBuf::from(value));
        match name {
            CERTIFICATE => self.certificate = path,
            KEY => self.key = path,
            AUTHORITIES => self.authorities = path,
            SHARED => self.shared = path,
            ALLOW if value.is_empty() => self.allow = None,
            ALLOW => {
                self.allow = Some(
                    value
                        .parse()
                        .map_err(|error| format!("cannot be: {error}"))?,
                )
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What they say together.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if one is missing that the others need, or if they contradict each other.
    pub(super) fn security(self) -> Result<Security, ConfigError> {
        let fail = |name: &str, value: String, problem: &str| {
            Err(ConfigError {
                name: name.to_owned(),
                value,
                problem: problem.to_owned(),
            })
        };
        let text = |path: &PathBuf| path.display().to_string();
        let given = [
            (CERTIFICATE, self.certificate.as_ref().map(text)),
            (KEY, self.key.as_ref().map(text)),
            (AUTHORITIES, self.authorities.as_ref().map(text)),
            (ALLOW, self.allow.as_ref().map(AllowList::to_string)),
        ];
        let first = given
            .iter()
            .find_map(|(name, value)| Some((*name, value.clone()?)));
        if let Some(path) = self.shared {
            return match first {
                None => Ok(Security::SharedKey(path)),
                Some((name, value)) => fail(
                    name,
                    value,
                    "is of certificates, and MOAI_SHARED_KEY_FILE is set as well; links are protected by one or the other",
                ),
            };
        }
        let Self {
            certificate: Some(certificate),
            key: Some(key),
            authorities: Some(authorities),
            allow: Some(allow),
            ..
        } = self
        else {
            return match (first, given.iter().find(|(_, value)| value.is_none())) {
                (Some((name, value)), Some((missing, _))) => fail(
                    name,
                    value,
                    &format!(
                        "needs {missing} as well; TLS takes a certificate, its key, the authorities of peers and who of those \
                         may be one, which can be * for all"
                    ),
                ),
                _ => Ok(Security::None),
            };
        };
        Ok(Security::Certificate(CertificateFiles {
            certificate,
            key,
            authorities,
            allow,
        }))
    }
}

/// The value that a variable would have to have; `None` if it is another one.
pub(super) fn value(security: &Security, name: &str) -> Option<String> {
    let value = match (security, name) {
        (Security::Certificate(files), CERTIFICATE) => files.certificate.display().to_string(),
        (Security::Certificate(files), KEY) => files.key.display().to_string(),
        (Security::Certificate(files), AUTHORITIES) => files.authorities.display().to_string(),
        (Security::Certificate(files), ALLOW) => files.allow.to_string(),
        (Security::SharedKey(path), SHARED) => path.display().to_string(),
        (_, CERTIFICATE | KEY | AUTHORITIES | ALLOW | SHARED) => String::new(),
        _ => return None,
    };
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pairs = variables.iter();
        Config::from_vars(pairs.map(|&(name, value)| (name.to_owned(), value.to_owned())))
    }

    const ALL: [(&str, &str); 4] = [
        (CERTIFICATE, "node.pem"),
        (KEY, "node-key.pem"),
        (AUTHORITIES, "ca.pem"),
        (ALLOW, "spiffe://c/ns/*,a.example"),
    ];

    #[test]
    fn certificates_come_with_all_that_they_need() {
        let config = read(&ALL).unwrap();
        let Security::Certificate(files) = &config.security else {
            panic!("{:?}", config.security)
        };
        assert_eq!(files.allow.to_string(), "spiffe://c/ns/*,dns:a.example");
        assert!(config.allow("10.0.0.1:80".parse().unwrap()).is_ok());
        assert!(!config.allows("shm") && config.allows("tcp"));
        for missing in 0..ALL.len() {
            let mut some = ALL.to_vec();
            let (name, _) = some.remove(missing);
            let error = read(&some).unwrap_err();
            assert!(error.problem.contains(name), "{error}");
        }
        let named = [&ALL[..], &[("MOAI_TRANSPORTS", "shm,tcp")]].concat();
        assert!(read(&named).unwrap().allows("shm"));
    }

    #[test]
    fn a_shared_key_goes_alone() {
        let config = read(&[(SHARED, "key.pem"), (ALLOW, "")]).unwrap();
        assert_eq!(config.security, Security::SharedKey("key.pem".into()));
        let error = read(&[(SHARED, "key.pem"), (ALLOW, "*")]).unwrap_err();
        assert!(error.to_string().contains("one or the other"), "{error}");
        let shown = config.variables();
        let of = |name| {
            shown
                .iter()
                .find(|it| it.name == name)
                .unwrap()
                .value
                .clone()
        };
        assert_eq!(
            (of(SHARED), of(ALLOW)),
            ("key.pem".to_owned(), String::new())
        );
    }
}
