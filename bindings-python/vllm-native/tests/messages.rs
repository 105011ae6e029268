//! Two nodes of this process, by messages alone: what is moved, and what is answered to messages that cannot be.

use std::time::{Duration, Instant};

use moai_vllm::{Answer, Nodes};
use serde_json::{Value, json};

fn done(nodes: &Nodes, ask: &Value) -> Value {
    match nodes.answer(ask.to_string().as_bytes()) {
        Answer::Done(value) => value,
        Answer::Problem(problem) => panic!("{ask}: {problem:?}"),
    }
}

fn problem(nodes: &Nodes, ask: &str) -> (String, String) {
    match nodes.answer(ask.as_bytes()) {
        Answer::Done(value) => panic!("{ask}: {value}"),
        Answer::Problem(problem) => (problem.reason, problem.why),
    }
}

/// One layer of pages of `slots` tokens, with 2 heads of 4 bytes.
fn open(nodes: &Nodes, engine: &str, slots: usize, pool: &mut [u8]) -> (Value, Value) {
    let description = json!({
        "version": 1, "model": { "layers": 1 }, "parallel": { "tp": 1 }, "page_slots": slots,
        "components": [{ "name": "key", "heads": 2, "dim": 4, "pool": "kv", "format": { "element": "e4m3fn" },
                         "layout": "[layer] page slot head dim" }],
        "ranks": [{ "rank": 0, "pages": pool.len() / (8 * slots) }],
    });
    let span = json!({ "address": pool.as_mut_ptr() as usize, "bytes": pool.len() });
    let opened = done(
        nodes,
        &json!({
            "ask": "open", "engine": engine, "number": 0, "ranks": [0], "epoch": 7, "key": vec![3; 32],
            "produces": true, "consumes": true, "description": description, "pools": [[span]],
            "settings": { "MOAI_TRANSPORTS": "tcp" },
        }),
    );
    (opened["node"].clone(), opened["addresses"].clone())
}

fn event(nodes: &Nodes, node: &Value, kind: &str) -> Value {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let events = done(
            nodes,
            &json!({ "ask": "events", "node": node, "wait": 0.1 }),
        );
        let found = events.as_array().unwrap().iter();
        if let Some(found) = found.into_iter().find(|event| event["event"] == kind) {
            return found.clone();
        }
    }
    panic!("no event {kind} within 10 s");
}

#[test]
fn a_request_moves_between_pages_of_unlike_sizes() {
    let nodes = Nodes::default();
    // Finite e4m3fn codes only.
    let mut source: Vec<u8> = (0..8 * 4 * 8).map(|i| (i % 100) as u8).collect();
    let mut target = vec![0; 16 * 2 * 8];
    let (prefill, addresses) = open(&nodes, "prefill", 4, &mut source);
    let (decode, _) = open(&nodes, "decode", 16, &mut target);
    let known = json!({ "ask": "know", "node": decode, "engine": "prefill", "nodes": [[0, [0], addresses]] });
    done(&nodes, &known);
    let pages = |groups: Value| json!({ "tokens": 10, "groups": groups });
    let handle = done(
        &nodes,
        &json!({ "ask": "offer", "node": prefill, "number": 1, "pages": pages(json!([[5, 0, 2]])), "lease": 20.0, "name": "r" }),
    );
    let pull = json!({ "ask": "pull", "node": decode, "handle": handle, "pages": pages(json!([[1]])), "deadline": 10.0, "name": "r" });
    let transfer = done(&nodes, &pull);
    let ended = event(&nodes, &decode, "ended");
    assert_eq!(
        (&ended["transfer"], &ended["problem"], &ended["fenced"]),
        (&transfer, &Value::Null, &json!(true))
    );
    assert_eq!(event(&nodes, &prefill, "released")["reason"], "consumed");
    let again = done(&nodes, &pull);
    let ended = event(&nodes, &decode, "ended");
    assert_eq!(
        (&ended["transfer"], &ended["problem"]["reason"]),
        (&again, &json!("consumed"))
    );
    for node in [prefill, decode] {
        done(&nodes, &json!({ "ask": "close", "node": node }));
    }
    for token in 0..10 {
        let page = [5, 0, 2][token / 4];
        let from = (page * 4 + token % 4) * 8;
        let to = (16 + token) * 8;
        assert_eq!(target[to..to + 8], source[from..from + 8], "token {token}");
    }
    assert!(target[..16 * 8].iter().all(|&byte| byte == 0));
}

#[test]
fn messages_that_cannot_be_are_answered_with_what_is_wrong() {
    let nodes = Nodes::default();
    for (ask, says) in [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        (r#"{"ask":"everything"}"#, "unknown variant"),
        (r#"{"ask":"close","node":1,"more":2}"#, "unknown field"),
        (r#"{"ask":"events","node":1,"wait":0.0}"#, "no node 1"),
        (r#"{"ask":"close","node":9}"#, "no node 9"),
    ] {
        let (reason, why) = problem(&nodes, ask);
        assert!(reason == "local" && why.contains(says), "{ask}: {why}");
    }
    let mut pool = vec![0; 16 * 2 * 8];
    let (node, _) = open(&nodes, "e", 16, &mut pool);
    let offer = |pages: &str| {
        format!(
            r#"{{"ask":"offer","node":{node},"number":1,"pages":{pages},"lease":1.0,"name":""}}"#
        )
    };
    for (ask, says) in [
        (offer(r#"{"tokens":3,"groups":[]}"#), "pages of 0 groups"),
        (offer(r#"{"tokens":3,"groups":[[2]]}"#), "out of range"),
        (offer(r#"{"tokens":0,"groups":[[1]]}"#), "request.tokens"),
        (offer(r#"{"tokens":40,"groups":[[1]]}"#), "need 3"),
        (
            format!(r#"{{"ask":"events","node":{node},"wait":-1.0}}"#),
            "-1 seconds",
        ),
        (
            format!(
                r#"{{"ask":"pull","node":{node},"handle":"?","pages":{{"tokens":1,"groups":[[1]]}},"deadline":1.0,"name":""}}"#
            ),
            "a handle is base64",
        ),
    ] {
        let (_, why) = problem(&nodes, &ask);
        assert!(why.contains(says), "{ask}: {why}");
    }
}
