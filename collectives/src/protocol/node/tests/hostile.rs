//! What peers make up, and what is left of them.

use super::*;

/// A producer "p", the consumer "c" that it deals with, and "x", whom nobody asked.
fn three() -> Net {
    Net::of(vec![config("p", 1), config("c", 2), config("x", 3)])
}

fn grant(number: u64) -> GrantSpec {
    GrantSpec {
        number,
        pages: [8; 16],
        tokens: 64,
        lease_ns: 2000 * MS,
        bound: Some("p".into()),
    }
}

fn declined(net: &Net) -> Vec<(u64, String)> {
    let declined = |(_, action): &(usize, Action)| match action {
        Action::Declined { offer, engine, .. } => Some((*offer, engine.to_string())),
        _ => None,
    };
    net.log.iter().filter_map(declined).collect()
}

#[test]
fn a_push_ends_with_its_offer() {
    let mut net = Net::pair();
    let grant = net.nodes[1].grant(grant(4), net.now, UNIX).unwrap();
    let before = net.nodes[0].size();
    net.connected = false;
    for (number, withdrawn) in [(1, true), (2, false)] {
        net.offer(number);
        net.nodes[0]
            .push(number, &grant, &[0], net.now, UNIX)
            .unwrap();
        net.settle();
        if withdrawn {
            net.nodes[0].withdraw(number, net.now);
        }
        net.pass(2_100);
        assert!(net.released(number).is_some());
        assert!(net.nodes[0].is_idle());
        let dials = net.nodes[0].counters().dials;
        net.pass(60_000);
        // A dial that was due already.
        assert!(net.nodes[0].counters().dials <= dials + 1);
        assert_eq!(net.nodes[0].size(), before);
    }
}

#[test]
fn only_who_was_asked_declines_a_push() {
    let mut net = three();
    for at in [1, 2] {
        net.nodes[at].connect("p", net.now);
    }
    net.settle();
    let made = net.nodes[1].grant(grant(4), net.now, UNIX).unwrap();
    net.offer(1);
    net.nodes[0].push(1, &made, &[0], net.now, UNIX).unwrap();
    net.settle();
    let decline = Message::Decline {
        offer: 1,
        reason: Reason::Local,
        why: "no".into(),
    };
    let (stranger, _) = net.nodes[0].ready_link("x", 0).unwrap();
    net.nodes[0].message(stranger, &decline.encode(), net.now);
    net.settle();
    assert_eq!(declined(&net), []);
    net.nodes[1].decline(4, Reason::Local, "no room", net.now);
    net.settle();
    assert_eq!(declined(&net), [(1, "c".to_owned())]);
}

/// Links a node of another engine to the first node until both are ready, and cuts the link again.
fn visit(net: &mut Net, config: Config, number: u64) {
    let mut other = Node::new(config).unwrap();
    other.know("p", &[(0, vec![0])]).unwrap();
    let (here, there) = (LinkId(1_000_000 + number), LinkId(1));
    other.dialled(there, "p", 0, None, net.now);
    net.nodes[0].accepted(here, None, net.now);
    loop {
        let said: Vec<Action> = other.actions().drain(..).collect();
        let answered: Vec<Action> = net.nodes[0].actions().drain(..).collect();
        if said.is_empty() && answered.is_empty() {
            break;
        }
        for action in said {
            match action {
                Action::Send { message, .. } => {
                    net.nodes[0].message(here, &message.encode(), net.now);
                }
                Action::Negotiate { digest, .. } => other.agreed(digest, Ok([9; 32]), net.now),
                _ => {}
            }
        }
        for action in answered {
            match &action {
                Action::Send { message, .. } => {
                    other.message(there, &message.encode(), net.now);
                }
                Action::Negotiate { digest, .. } => {
                    net.nodes[0].agreed(*digest, Ok([9; 32]), net.now);
                }
                _ => {}
            }
            net.log.push((0, action));
        }
    }
    assert_eq!(net.nodes[0].link_state(here), Some(LinkState::Ready));
    net.nodes[0].closed(here, "reset", net.now);
    net.nodes[0].actions().clear();
}

#[test]
fn engines_that_only_their_links_told_of_are_forgotten_and_so_is_what_was_agreed() {
    use crate::limits::{MAX_FORMER_ENGINES, MAX_IDLE_DESCRIPTORS};
    let mut net = Net::pair();
    let before = net.nodes[0].size();
    let most = 2 * MAX_FORMER_ENGINES as u64;
    for number in 0..most {
        visit(&mut net, config(&format!("x{number}"), 9), number);
    }
    assert!(net.nodes[0].size() <= before + MAX_FORMER_ENGINES);
    assert!(net.nodes[0].peers.len() <= MAX_FORMER_ENGINES + 3);
    assert!(net.nodes[0].descriptions.len() <= MAX_IDLE_DESCRIPTORS);
    // Whoever keeps what was agreed is told.
    let forgotten = net.count(|a| matches!(a, Action::Forgotten { .. }));
    assert_eq!(forgotten, most as usize - MAX_IDLE_DESCRIPTORS);
    // One that has only said its name leaves nothing at all.
    let size = net.nodes[0].size();
    for number in 0..50 {
        let link = LinkId(2_000_000 + number);
        let mut other = Node::new(config(&format!("y{number}"), 9)).unwrap();
        other.know("p", &[(0, vec![0])]).unwrap();
        other.dialled(link, "p", 0, None, net.now);
        net.nodes[0].accepted(link, None, net.now);
        for action in other.actions().drain(..) {
            if let Action::Send { message, .. } = action {
                net.nodes[0].message(link, &message.encode(), net.now);
            }
        }
        net.nodes[0].closed(link, "reset", net.now);
    }
    assert_eq!(net.nodes[0].size(), size);
}

#[test]
fn an_engine_that_left_does_not_come_back_as_an_earlier_life() {
    let mut net = Net::pair();
    visit(&mut net, config("x", 1), 1);
    visit(&mut net, config("x", 2), 2);
    let refused = net.nodes[0].counters().epochs_refused;
    let mut old = Node::new(config("x", 1)).unwrap();
    old.know("p", &[(0, vec![0])]).unwrap();
    old.dialled(LinkId(1), "p", 0, None, net.now);
    net.nodes[0].accepted(LinkId(77), None, net.now);
    for action in old.actions().drain(..) {
        if let Action::Send { message, .. } = action {
            net.nodes[0].message(LinkId(77), &message.encode(), net.now);
        }
    }
    assert_eq!(net.nodes[0].counters().epochs_refused, refused + 1);
}

#[test]
fn a_node_that_a_transfer_waited_for_is_forgotten_with_it() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    // Nobody told of it; it comes by itself, and goes while a transfer waits for another life of it.
    net.nodes[1].know("p", &[]).unwrap();
    let before = net.nodes[1].size();
    net.nodes[0].connect("c", net.now);
    net.settle();
    let mut said = handle.fields().clone();
    said.epoch = 99;
    let other = Handle::seal(said, &key("p")).unwrap();
    let mut spec = pull(&other);
    spec.within_ns = 5_000 * MS;
    let id = net.nodes[1].pull(spec, net.now, UNIX).unwrap();
    net.settle();
    let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
    net.connected = false;
    net.cut(1, link);
    net.pass(60_000);
    assert_eq!(net.ended(id).len(), 1);
    // But for its epoch.
    assert_eq!(net.nodes[1].size(), before + 1);
}

#[test]
fn an_engine_that_moves_about_leaves_nothing_where_it_was() {
    let mut net = Net::pair();
    net.nodes[0].know("e", &[(0, vec![0])]).unwrap();
    let before = net.nodes[0].size();
    for number in 1..50 {
        net.nodes[0].know("e", &[(number, vec![number])]).unwrap();
    }
    assert_eq!(net.nodes[0].size(), before);
    net.nodes[0].connect("e", net.now);
    net.connected = false;
    net.settle();
    net.nodes[0].know("e", &[]).unwrap();
    net.pass(10_000);
    assert_eq!(net.nodes[0].size(), before - 3);
    assert!(!net.nodes[0].by_name.contains_key("e"));
}

#[test]
fn ranks_of_a_node_that_is_linked_are_not_given_to_another() {
    let of = |node, ranks| {
        let mut config = config("p", 1);
        (config.node, config.ranks) = (node, ranks);
        config
    };
    let mut net = Net::of(vec![of(0, vec![0, 1]), config("c", 2), of(1, vec![1, 2])]);
    net.nodes[0].connect("c", net.now);
    net.settle();
    net.nodes[2].connect("c", net.now);
    net.settle();
    assert!(net.nodes[1].ready_link("p", 0).is_some());
    assert!(net.nodes[1].ready_link("p", 1).is_none());
    let rejected = |(_, action): &(usize, Action)| match action {
        Action::Send {
            message: Message::Reject { why, .. },
            ..
        } => Some(why.clone()),
        _ => None,
    };
    let why = net.log.iter().find_map(rejected).unwrap();
    assert!(why.contains("holds rank 1, as does node 0"), "{why}");
    assert_eq!(net.nodes[1].peers[0].node_of(1), Some(0));
}

#[test]
fn a_lease_is_not_extended_for_ever() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let mut rounds = 0;
    // Whoever has the handle pulls again whenever its time is over, and gives up.
    while net.released(1).is_none() {
        rounds += 1;
        assert!(rounds < 20, "the offer is still there");
        let mut spec = pull(&handle);
        spec.within_ns = 3_000_000 * MS;
        let Ok(id) = net.nodes[1].pull(spec, net.now, UNIX) else {
            break;
        };
        net.settle();
        let serve = net.accept();
        net.pass(1_000_000);
        net.nodes[1].cancel(id, net.now);
        net.settle();
        net.nodes[0].stopped(serve, net.now);
        net.quiet(id);
    }
    assert_eq!(net.released(1), Some(Reason::Expired));
    assert!(rounds > 1);
}

#[test]
fn what_the_transport_refuses_breaks_the_protocol() {
    let mut net = Net::pair();
    let handle = net.offer(1);
    let id = net.pull(&handle);
    net.accept();
    let (link, _) = net.nodes[1].ready_link("p", 0).unwrap();
    net.nodes[1].violated(link, "sends what nobody pulled", net.now);
    net.cut(1, link);
    net.settle();
    net.quiet(id);
    assert!(matches!(
        net.failure(id),
        Failure::Protocol { rank: 0, what } if what == "sends what nobody pulled"
    ));
    assert_eq!(net.nodes[1].counters().protocol_errors, 1);
}
