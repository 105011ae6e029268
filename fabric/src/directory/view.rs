//! What is known of an engine's nodes: kept through a source's loss, and never without its age.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::entry::{Node, NodeKey};

/// What a directory knows of one engine, as of a moment. A snapshot: held as long as it is of use, never updated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct View {
    /// The engine's nodes, by key.
    pub nodes: Vec<Known>,
    /// When the source last answered; `None` if it never has.
    pub seen: Option<Instant>,
    /// Since when the source does not answer; `None` while it does.
    pub stale_since: Option<Instant>,
    /// Why it does not answer.
    pub problem: Option<Arc<str>>,
}

/// A node of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Known {
    /// What the source says, or last said.
    pub node: Node,
    /// Since when the source no longer lists it, though it answers. Kept for a while, and as long as somebody is linked
    /// to it: a directory that was wiped must not break peers that talk to each other.
    pub withdrawn_since: Option<Instant>,
}

impl View {
    /// Nodes that the source lists, or listed when it last answered.
    pub fn listed(&self) -> impl Iterator<Item = &Node> {
        { self.nodes.iter() }
            .filter(|known| known.withdrawn_since.is_none())
            .map(|known| &known.node)
    }

    /// The node with that key.
    #[must_use]
    pub fn get(&self, key: &NodeKey) -> Option<&Known> {
        self.nodes.iter().find(|known| known.node.key() == *key)
    }

    /// How long ago the source last answered.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.seen.map(|seen| now.saturating_duration_since(seen))
    }

    /// The view after the source has listed these nodes. What is not among them stays while it is `held`, and otherwise
    /// for `grace`.
    #[must_use]
    pub(super) fn listing(
        &self,
        nodes: &[Node],
        now: Instant,
        grace: Duration,
        held: impl Fn(&NodeKey) -> bool,
    ) -> Self {
        let known = |node: &Node| Known {
            node: node.clone(),
            withdrawn_since: None,
        };
        let mut all: BTreeMap<NodeKey, Known> =
            nodes.iter().map(|node| (node.key(), known(node))).collect();
        for old in &self.nodes {
            let key = old.node.key();
            if all.contains_key(&key) {
                continue;
            }
            let since = old.withdrawn_since.unwrap_or(now);
            if held(&key) || now.saturating_duration_since(since) < grace {
                let withdrawn_since = Some(since);
                all.insert(
                    key,
                    Known {
                        withdrawn_since,
                        ..old.clone()
                    },
                );
            }
        }
        Self {
            nodes: all.into_values().collect(),
            seen: Some(now),
            stale_since: None,
            problem: None,
        }
    }

    /// The view after the source has not answered: all that was known.
    #[must_use]
    pub(super) fn lost(&self, problem: &Arc<str>, now: Instant) -> Self {
        Self {
            stale_since: Some(self.stale_since.unwrap_or(now)),
            problem: Some(problem.clone()),
            ..self.clone()
        }
    }

    /// Whether both say the same, but for their ages.
    #[must_use]
    pub(super) fn says_as(&self, other: &Self) -> bool {
        (&self.nodes, self.stale_since, self.seen.is_some())
            == (&other.nodes, other.stale_since, other.seen.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn node(number: u32) -> Node {
        let address = format!("tcp:10.0.0.{number}:1").parse().unwrap();
        Node::at(vec![address]).unwrap().numbered(number)
    }

    fn numbers(view: &View) -> Vec<(u32, bool)> {
        let listed = |known: &Known| (known.node.number.unwrap(), known.withdrawn_since.is_none());
        view.nodes.iter().map(listed).collect()
    }

    #[test]
    fn a_lost_source_takes_nothing_away_and_says_since_when() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let view = View::default().listing(&[node(1), node(2)], at(0), GRACE, |_| false);
        let lost = view.lost(&"refused".into(), at(5));
        let lost = lost.lost(&"timed out".into(), at(1000));
        assert_eq!(numbers(&lost), [(1, true), (2, true)]);
        assert_eq!(lost.stale_since, Some(at(5)));
        assert_eq!(lost.problem.as_deref(), Some("timed out"));
        assert_eq!(lost.age(at(1000)), Some(Duration::from_secs(1000)));
        let back = lost.listing(&[node(1), node(2), node(3)], at(1001), GRACE, |_| false);
        assert_eq!(numbers(&back), [(1, true), (2, true), (3, true)]);
        assert_eq!((back.stale_since, back.problem.as_deref()), (None, None));
    }

    #[test]
    fn what_is_no_longer_listed_goes_after_a_while_unless_it_is_held() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let held = |key: &NodeKey| *key == NodeKey::Number(2);
        let view = View::default().listing(&[node(1), node(2)], at(0), GRACE, held);
        let view = view.listing(&[], at(1), GRACE, held);
        assert_eq!(numbers(&view), [(1, false), (2, false)]);
        assert_eq!(view.listed().count(), 0);
        let view = view.listing(&[], at(10), GRACE, held);
        assert_eq!(numbers(&view), [(1, false), (2, false)]);
        let view = view.listing(&[], at(11), GRACE, held);
        assert_eq!(numbers(&view), [(2, false)]);
        let view = view.listing(&[node(2)], at(100), GRACE, |_| false);
        assert_eq!(numbers(&view), [(2, true)]);
    }
}
