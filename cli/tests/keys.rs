//! Certificates are made, used between ranks, and refused with the names of both sides.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::{moai, output, stderr, stdout, text};

/// Variables for the certificate `node` of a folder, judged by the authority of another.
fn environment(folder: &Path, authority: &Path, allow: &str) -> [(&'static str, String); 4] {
    let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
    [
        ("MOAI_TLS_CERT", file(folder, "node.pem")),
        ("MOAI_TLS_KEY", file(folder, "node-key.pem")),
        ("MOAI_TLS_CA", file(authority, "ca.pem")),
        ("MOAI_ALLOW", allow.to_owned()),
    ]
}

const RUN: [&str; 5] = ["run", "--tokens", "64", "--deadline", "20"];

#[test]
fn a_cluster_in_two_commands() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    let made = output(&["keys", "init", text(&keys), "--node", "node", "--node", "b"]);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(
        stdout(&made).contains("MOAI_ALLOW='spiffe://moai/node/*'"),
        "{}",
        stdout(&made)
    );
    let again = output(&["keys", "init", text(&keys)]);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        stderr(&again).contains("not overwritten"),
        "{}",
        stderr(&again)
    );
    let shown = output(&["keys", "show", text(&keys.join("b.pem"))]);
    assert!(
        stdout(&shown).contains("spiffe://moai/node/b, dns:b"),
        "{}",
        stdout(&shown)
    );
    let left = ["364 days left", "365 days left"];
    assert!(
        left.iter().any(|left| stdout(&shown).contains(left)),
        "{}",
        stdout(&shown)
    );
    let run = output(&[&RUN[..], &["--tls", text(&keys)]].concat());
    assert!(run.status.success(), "{}{}", stdout(&run), stderr(&run));
    assert!(
        stdout(&run).contains("encrypted by TLS with spiffe://moai/node/node"),
        "{}",
        stdout(&run)
    );
    fs::set_permissions(keys.join("node-key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = output(&[&RUN[..], &["--tls", text(&keys)]].concat());
    assert!(!open.status.success());
    assert!(stderr(&open).contains("mode 0644"), "{}", stderr(&open));
}

#[test]
fn a_shared_key_and_open_payload() {
    let folder = tempfile::tempdir().unwrap();
    let made = output(&["keys", "init", text(folder.path()), "--shared"]);
    assert!(made.status.success(), "{}", stderr(&made));
    for (payload, says) in [
        ("on", "encrypted by TLS"),
        ("off", "encrypted but for payload by TLS"),
    ] {
        let run = moai(&[&RUN[..], &["--tls", text(folder.path())]].concat())
            .env("MOAI_TLS_PAYLOAD", payload)
            .output()
            .unwrap();
        assert!(run.status.success(), "{}{}", stdout(&run), stderr(&run));
        assert!(stdout(&run).contains(says), "{}", stdout(&run));
        assert!(
            stdout(&run).contains("a holder of the shared key"),
            "{}",
            stdout(&run)
        );
    }
}

#[test]
fn who_is_not_let_in_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, other, old] = ["ours", "other", "old"].map(|name| folder.path().join(name));
    for keys in [&ours, &other, &old] {
        let made = output(&["keys", "init", text(keys)]);
        assert!(made.status.success(), "{}", stderr(&made));
    }
    let refused = |environment: &[(&str, String)]| {
        let mut run = moai(&RUN);
        run.envs(
            environment
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        let run = run.output().unwrap();
        assert_eq!(
            run.status.code(),
            Some(4),
            "{}{}",
            stdout(&run),
            stderr(&run)
        );
        stderr(&run)
    };
    let said = refused(&environment(&ours, &other, "*"));
    assert!(said.contains("spiffe://moai/node/node"), "{said}");
    assert!(
        said.contains("no authority of ours has signed it"),
        "{said}"
    );
    let said = refused(&environment(&ours, &ours, "spiffe://moai/nod/*,b.example"));
    assert!(
        said.contains("the peer is spiffe://moai/node/node"),
        "{said}"
    );
    assert!(said.contains("spiffe://moai/nod/*,dns:b.example"), "{said}");
}

#[test]
fn settings_that_do_not_go_together_are_named_before_anything_starts() {
    let run = moai(&RUN)
        .env("MOAI_TLS_CERT", "node.pem")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(2));
    assert!(stderr(&run).contains("MOAI_TLS_KEY"), "{}", stderr(&run));
    let run = moai(&RUN)
        .env("MOAI_TLS_CERT", "nowhere/node.pem")
        .env("MOAI_TLS_KEY", "nowhere/node-key.pem")
        .env("MOAI_TLS_CA", "nowhere/ca.pem")
        .env("MOAI_ALLOW", "*")
        .output()
        .unwrap();
    assert!(!run.status.success());
    assert!(
        stderr(&run).contains("nowhere/node.pem: cannot be read"),
        "{}",
        stderr(&run)
    );
}
