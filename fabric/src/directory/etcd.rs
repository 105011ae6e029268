//! Entries in etcd, and the node's own among them.
//!
//! Spoken through etcd's gRPC gateway: JSON over HTTP, part of every server since 3.4. The crates that speak gRPC run
//! `protoc`, a system package, when they are built, and bring an asynchronous runtime; what is needed here is a question
//! every second or two, asked by a thread that waits.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;
use ureq::Agent;

use super::{
    entry::{EngineName, Node},
    source::Etcd,
};
use crate::limits::{MAX_DIRECTORY_ANSWER_BYTES, MAX_ENTRY_BYTES, MAX_NODES};

/// How long a member may take to answer; then the next is asked. Below a third of the lease's life, so that one slow
/// answer does not end it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Revisions are compared, and everything is read anew after this all the same: a cluster that lost its data counts from
/// the beginning again.
const READ_ANEW: Duration = Duration::from_secs(15);

/// A cluster, and what was last read of it.
#[derive(Debug)]
pub(super) struct Cluster {
    config: Etcd,
    agent: Agent,
    /// The member that answered last.
    current: usize,
    revision: Option<i64>,
    read: Option<Instant>,
}

/// A lease that this process keeps alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease(String);

/// etcd did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No member has answered.
    #[error("etcd at {endpoint} does not answer")]
    Unreachable {
        /// The last that was asked.
        endpoint: String,
        /// Why not.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A member answered that it cannot.
    #[error("etcd at {endpoint} answers {status} to {path}: {text}")]
    Status {
        /// The member.
        endpoint: String,
        /// What it was asked for.
        path: &'static str,
        /// The status of HTTP.
        status: u16,
        /// What it said, shortened.
        text: String,
    },
    /// An answer is none.
    #[error("etcd at {endpoint} answers {path} with what cannot be read")]
    Malformed {
        /// The member.
        endpoint: String,
        /// What it was asked for.
        path: &'static str,
        /// What is wrong.
        #[source]
        cause: serde_json::Error,
    },
    /// More keys than an engine has nodes.
    #[error("engine {engine} has more than {most} nodes in etcd")]
    TooMany {
        /// The engine.
        engine: EngineName,
        /// The limit.
        most: usize,
    },
}

/// The part of answers that counts changes. Numbers of 64 bits are texts in JSON.
#[derive(Debug, Deserialize)]
struct Header {
    revision: String,
}

#[derive(Debug, Deserialize)]
struct Ranged {
    header: Header,
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Debug, Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Debug, Deserialize)]
struct Granted {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Debug, Deserialize)]
struct KeptAlive {
    result: Kept,
}

#[derive(Debug, Deserialize)]
struct Kept {
    /// Missing when the lease is gone.
    #[serde(rename = "TTL", default)]
    ttl: String,
}

impl Cluster {
    pub(super) fn new(config: Etcd) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            // What the environment says of proxies is for the web.
            .proxy(None)
            .max_idle_connections(config.endpoints.len())
            .build();
        Self {
            config,
            agent: agent.into(),
            current: 0,
            revision: None,
            read: None,
        }
    }

    /// Whether there may be something new since this was last asked.
    pub(super) fn has_changed(&mut self, now: Instant) -> Result<bool, EtcdError> {
        let range = self.range_of(&format!("{}/", self.config.prefix));
        let mut body = range;
        body["count_only"] = true.into();
        let answer: Ranged = self.call("/v3/kv/range", &body)?;
        let revision = answer.header.revision.parse().ok();
        let due = |read: Instant| now.saturating_duration_since(read) >= READ_ANEW;
        let is_new = revision.is_none() || revision != self.revision || self.read.is_none_or(due);
        if is_new {
            self.revision = revision;
            self.read = Some(now);
        }
        Ok(is_new)
    }

    /// What was read is to be read again.
    pub(super) fn forget(&mut self) {
        self.revision = None;
    }

    /// An engine's nodes, and what cannot be read among its keys.
    pub(super) fn nodes(
        &mut self,
        engine: &EngineName,
    ) -> Result<(Vec<Node>, Vec<String>), EtcdError> {
        let prefix = format!("{}/{engine}/", self.config.prefix);
        let mut body = self.range_of(&prefix);
        body["limit"] = MAX_NODES.into();
        let answer: Ranged = self.call("/v3/kv/range", &body)?;
        if answer.more {
            return Err(EtcdError::TooMany {
                engine: engine.clone(),
                most: MAX_NODES,
            });
        }
        let (mut nodes, mut problems) = (Vec::new(), Vec::new());
        for pair in &answer.kvs {
            match read(&prefix, pair) {
                Ok(node) => nodes.push(node),
                Err(problem) => problems.push(problem),
            }
        }
        Ok((nodes, problems))
    }

    /// A lease of some seconds.
    pub(super) fn grant(&mut self, ttl: Duration) -> Result<Lease, EtcdError> {
        let body = json!({ "TTL": ttl.as_secs().max(1).to_string() });
        let granted: Granted = self.call("/v3/lease/grant", &body)?;
        Ok(Lease(granted.id))
    }

    /// Renews a lease; false if it is gone.
    pub(super) fn keep_alive(&mut self, lease: &Lease) -> Result<bool, EtcdError> {
        let kept: KeptAlive = self.call("/v3/lease/keepalive", &json!({ "ID": lease.0 }))?;
        Ok(kept.result.ttl.parse().is_ok_and(|ttl: i64| ttl > 0))
    }

    /// Ends a lease, and with it what was put under it.
    pub(super) fn revoke(&mut self, lease: &Lease) -> Result<(), EtcdError> {
        self.call("/v3/lease/revoke", &json!({ "ID": lease.0 }))
            .map(|_: Value| ())
    }

    /// Puts a node's entry, for as long as the lease lives.
    pub(super) fn put(
        &mut self,
        engine: &EngineName,
        node: &Node,
        lease: &Lease,
    ) -> Result<(), EtcdError> {
        let number = node.number.unwrap_or(0);
        let key = format!("{}/{engine}/{number:05}", self.config.prefix);
        let body = json!({
            "key": BASE64.encode(key),
            "value": BASE64.encode(node.encode()),
            "lease": lease.0,
        });
        self.call("/v3/kv/put", &body).map(|_: Value| ())
    }

    fn range_of(&self, prefix: &str) -> Value {
        // Keys that begin with a prefix are those up to the one that its last byte, raised by one, makes.
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        json!({ "key": BASE64.encode(prefix), "range_end": BASE64.encode(end) })
    }

    /// Asks the member that answered last, then the others.
    fn call<T: DeserializeOwned>(
        &mut self,
        path: &'static str,
        body: &Value,
    ) -> Result<T, EtcdError> {
        let body = body.to_string();
        let members = self.config.endpoints.len();
        let mut outcome = None;
        for turn in 0..members {
            let member = (self.current + turn) % members;
            match self.call_one(member, path, &body) {
                Ok(answer) => {
                    self.current = member;
                    return Ok(answer);
                }
                Err(error) => outcome = Some(error),
            }
        }
        Err(outcome.unwrap_or_else(|| EtcdError::Unreachable {
            endpoint: "none".into(),
            cause: "no endpoint is configured".into(),
        }))
    }

    fn call_one<T: DeserializeOwned>(
        &self,
        member: usize,
        path: &'static str,
        body: &str,
    ) -> Result<T, EtcdError> {
        let endpoint = &self.config.endpoints[member];
        let unreachable = |cause: ureq::Error| EtcdError::Unreachable {
            endpoint: endpoint.clone(),
            cause: cause.into(),
        };
        let sent = { self.agent.post(format!("{endpoint}{path}")) }
            .header("content-type", "application/json")
            .send(body);
        let mut answer = sent.map_err(unreachable)?;
        let status = answer.status().as_u16();
        let bounded = answer
            .body_mut()
            .with_config()
            .limit(MAX_DIRECTORY_ANSWER_BYTES);
        let bytes = bounded.read_to_vec().map_err(unreachable)?;
        if status != 200 {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(200).collect();
            return Err(EtcdError::Status {
                endpoint: endpoint.clone(),
                path,
                status,
                text,
            });
        }
        serde_json::from_slice(&bytes).map_err(|cause| EtcdError::Malformed {
            endpoint: endpoint.clone(),
            path,
            cause,
        })
    }
}

/// A node of a key and its value. One that cannot be read leaves the others be.
fn read(prefix: &str, pair: &KeyValue) -> Result<Node, String> {
    let key = BASE64
        .decode(&pair.key)
        .map_err(|error| format!("a key: {error}"))?;
    let key = String::from_utf8_lossy(&key).into_owned();
    let fail = |problem: &dyn ToString| format!("{key}: {}", problem.to_string());
    // Base64 has four bytes for three.
    if pair.value.len() > MAX_ENTRY_BYTES / 3 * 4 + 4 {
        return Err(fail(&"is too long"));
    }
    let value = BASE64.decode(&pair.value).map_err(|error| fail(&error))?;
    let node = Node::decode(&value).map_err(|error| fail(&error))?;
    let named: Option<u32> = key
        .strip_prefix(prefix)
        .and_then(|number| number.parse().ok());
    match (named, node.number) {
        (Some(named), Some(number)) if named == number => Ok(node),
        _ => Err(fail(&"the key's number is not the node's")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: BASE64.encode(key),
            value: BASE64.encode(value),
        }
    }

    #[test]
    fn a_key_says_which_node_its_value_is() {
        let node = r#"{"node": 3, "addresses": ["tcp:h:1"]}"#;
        assert_eq!(
            read("/moai/a/", &pair("/moai/a/00003", node))
                .unwrap()
                .number,
            Some(3)
        );
        for (key, value) in [
            ("/moai/a/00004", node),
            ("/moai/a/x", node),
            ("/other/a/3", node),
            ("/moai/a/3", "{}"),
            ("/moai/a/3", r#"{"addresses": ["tcp:h:1"]}"#),
        ] {
            let problem = read("/moai/a/", &pair(key, value)).unwrap_err();
            assert!(problem.starts_with(key), "{problem}");
        }
    }

    #[test]
    fn answers_are_read_as_etcd_writes_them() {
        let text = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"1","revision":"7","raft_term":"2"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"Yg=="}],"count":"1"}"#;
        let answer: Ranged = serde_json::from_str(text).unwrap();
        assert_eq!(
            (
                answer.header.revision.as_str(),
                answer.kvs.len(),
                answer.more
            ),
            ("7", 1, false)
        );
        let gone: KeptAlive = serde_json::from_str(r#"{"result":{"header":{},"ID":"7"}}"#).unwrap();
        assert!(gone.result.ttl.is_empty());
    }
}
