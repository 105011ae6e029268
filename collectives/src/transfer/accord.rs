//! What two engines agreed on, each way.

use std::{fmt, sync::Arc};

use sha2::{Digest, Sha256};

use crate::{descriptor::Descriptor, execute::Agreed};

/// What this engine agreed on with another.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers write these out")]
pub struct Accord {
    /// Equal on both sides if both mean the same.
    pub digest: [u8; 32],
    /// Where this engine is the producer.
    pub serves: Option<Arc<Agreed>>,
    /// Where it is the consumer.
    pub pulls: Option<Arc<Agreed>>,
}

/// Comes to an accord with an engine by what it says of itself, or says why there is none.
pub type Negotiate = Box<dyn FnMut(&[u8]) -> Result<Accord, String> + Send>;

/// What an engine says of itself to others: which parts it takes, and how its cache lies.
///
/// ```text
/// moai engine 1 producer consumer
/// { "version": 1, … }
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    produces: bool,
    consumes: bool,
    description: String,
}

const TITLE: &str = "moai engine 1";

impl Profile {
    /// An engine that produces, consumes, or both, with a [description](crate::description) of its cache in JSON.
    #[must_use]
    pub fn new(produces: bool, consumes: bool, description: impl Into<String>) -> Self {
        Self {
            produces,
            consumes,
            description: description.into(),
        }
    }

    /// As it goes over a link.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = TITLE.to_owned();
        for (does, name) in [(self.produces, " producer"), (self.consumes, " consumer")] {
            head += if does { name } else { "" };
        }
        format!("{head}\n{}", self.description).into_bytes()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "an engine's profile is no UTF-8")?;
        let (head, description) = { text.split_once('\n') }
            .ok_or("an engine's profile has no first line; expected its parts")?;
        let parts = { head.strip_prefix(TITLE) }.ok_or_else(|| {
            let head: String = head.chars().take(40).collect();
            format!("an engine's profile begins with {head:?}; expected {TITLE:?}")
        })?;
        let has = |name: &str| parts.split(' ').any(|part| part == name);
        Ok(Self::new(has("producer"), has("consumer"), description))
    }

    /// The cache's descriptor.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn descriptor(&self) -> Result<Descriptor, String> {
        let read = Descriptor::read(&self.description);
        read.map(|(descriptor, _)| descriptor)
            .map_err(|error| error.to_string())
    }

    /// Comes to accords with other engines' profiles.
    ///
    /// # Errors
    ///
    /// What is wrong with the description.
    pub fn negotiate(self) -> Result<Negotiate, String> {
        let own = self.descriptor()?;
        let me: [u8; 32] = Sha256::digest(self.to_bytes()).into();
        Ok(Box::new(move |bytes: &[u8]| {
            let there = Self::from_bytes(bytes)?;
            let theirs = there.descriptor()?;
            let them: [u8; 32] = Sha256::digest(bytes).into();
            let (serve, pull) = (
                self.produces && there.consumes,
                self.consumes && there.produces,
            );
            if !serve && !pull {
                return Err(format!(
                    "this engine {}, the other {}: nothing goes either way; give one of them the other part",
                    self, there
                ));
            }
            let agree = |does: bool, producer: &Descriptor, consumer: &Descriptor| match does {
                true => Agreed::new(producer.clone(), consumer.clone())
                    .map(|agreed| Some(Arc::new(agreed)))
                    .map_err(|refusal| refusal.to_string()),
                false => Ok(None),
            };
            let (serves, pulls) = (agree(serve, &own, &theirs), agree(pull, &theirs, &own));
            let (serves, pulls) = match (serves, pulls) {
                // One way is enough for a link; whoever wants the other is told then.
                (Err(why), Ok(None)) | (Ok(None), Err(why)) => return Err(why),
                (Err(why), Err(other)) => return Err(format!("{why}\n{other}")),
                (serves, pulls) => (serves.unwrap_or_default(), pulls.unwrap_or_default()),
            };
            let digest = |agreed: &Option<Arc<Agreed>>| {
                { agreed }
                    .as_ref()
                    .map_or([0; 32], |agreed| *agreed.agreement.digest())
            };
            // Both sides take the two ways in the order of their producers.
            let mut ways = [(me, digest(&serves)), (them, digest(&pulls))];
            ways.sort_unstable();
            let mut hash = Sha256::new();
            hash.update(b"moai accord 1\0");
            ways.iter().for_each(|(_, digest)| hash.update(digest));
            Ok(Accord {
                digest: hash.finalize().into(),
                serves,
                pulls,
            })
        }))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.produces, self.consumes) {
            (true, true) => "produces and consumes",
            (true, false) => "produces",
            (false, true) => "consumes",
            (false, false) => "does neither",
        })
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profile({self}, {} bytes)", self.description.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(produces: bool, consumes: bool, tp: u32, element: &str) -> Profile {
        let ranks: Vec<_> = (0..tp)
            .map(|rank| json!({ "rank": rank, "pages": 4 }))
            .collect();
        let description = json!({
            "version": 1, "model": { "layers": 2 }, "parallel": { "tp": tp }, "page_slots": 16,
            "components": [{ "name": "key", "heads": 4, "dim": 64, "pool": "kv",
                             "format": { "element": element }, "layout": "[layer] page slot head dim" }],
            "ranks": ranks,
        });
        Profile::new(produces, consumes, description.to_string())
    }

    fn accord(a: &Profile, b: &Profile) -> Result<Accord, String> {
        a.clone().negotiate().unwrap()(&b.to_bytes())
    }

    #[test]
    fn both_sides_come_to_the_same() {
        for (p, c) in [((true, false), (false, true)), ((true, true), (true, true))] {
            let a = profile(p.0, p.1, 2, "bf16");
            let b = profile(c.0, c.1, 4, "e4m3fn");
            assert_eq!(Profile::from_bytes(&a.to_bytes()), Ok(a.clone()));
            let (here, there) = (accord(&a, &b).unwrap(), accord(&b, &a).unwrap());
            assert_eq!(here.digest, there.digest);
            assert_eq!(here.serves.is_some(), there.pulls.is_some());
            assert_eq!(here.pulls.is_some(), there.serves.is_some());
            assert_eq!(here.pulls.is_some(), p.1);
            assert!(here.serves.is_some());
        }
    }

    #[test]
    fn without_a_way_there_is_none_and_both_are_told_why() {
        let (a, b) = (
            profile(true, false, 1, "bf16"),
            profile(true, false, 1, "bf16"),
        );
        assert!(
            accord(&a, &b)
                .unwrap_err()
                .contains("nothing goes either way")
        );
        let mut other = profile(false, true, 1, "bf16");
        other.description = other.description.replace("\"layers\":2", "\"layers\":3");
        assert!(accord(&a, &other).unwrap_err().contains("model.layers"));
        assert!(
            Profile::from_bytes(b"GET / HTTP/1.1\n")
                .unwrap_err()
                .contains("GET")
        );
        assert!(Profile::from_bytes(&[0xFF, 10]).is_err());
        assert!(Profile::from_bytes(b"moai engine 1").is_err());
    }
}
