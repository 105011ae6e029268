//! `moai doctor`: what of a host stands in the way, and how to mend it.
//!
//! Files are read and nothing else is done, so that a tree of them stands for a host in tests. What is not there is not
//! told, or told as absent; it never fails.

mod devices;
mod memory;
mod network;
mod process;
mod root;
mod system;

use std::fmt::Write;

use moai_fabric::config::Config;
use serde::Serialize;
use serde_json::json;

use self::root::Root;
use crate::{
    args,
    failure::{Failure, show, write_json},
};

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: String,
    state: State,
    found: String,
    why: &'static str,
    /// A line to paste.
    mend: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Slower or less than could be.
    Note,
    /// Something will not work.
    Problem,
}

impl Finding {
    fn ok(what: impl Into<String>, found: impl Into<String>, why: &'static str) -> Self {
        Self {
            what: what.into(),
            state: State::Ok,
            found: found.into(),
            why,
            mend: None,
        }
    }

    fn note(what: impl Into<String>, found: impl Into<String>, why: &'static str) -> Self {
        Self {
            state: State::Note,
            ..Self::ok(what, found, why)
        }
    }

    fn problem(
        what: impl Into<String>,
        found: impl Into<String>,
        why: &'static str,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Problem,
            mend: Some(mend.into()),
            ..Self::ok(what, found, why)
        }
    }

    fn mended_by(mut self, line: impl Into<String>) -> Self {
        self.mend = Some(line.into());
        self
    }
}

pub(crate) fn doctor(command: &args::Doctor) -> Result<(), Failure> {
    let config = Config::from_env()?;
    let findings = look(&Root::new(&command.root), &config);
    show(text(&findings))?;
    let count = |state| {
        findings
            .iter()
            .filter(|finding| finding.state == state)
            .count()
    };
    let problems = count(State::Problem);
    let report = json!({
        "outcome": "looked",
        "problems": problems,
        "notes": count(State::Note),
        "findings": findings,
    });
    write_json(command.json.as_deref(), &report)?;
    match command.strict && problems > 0 {
        true => Err(Failure::Unfit(problems)),
        false => Ok(()),
    }
}

/// Looks at everything.
fn look(root: &Root, config: &Config) -> Vec<Finding> {
    let devices = devices::Devices::of(root);
    let mut findings = Vec::new();
    findings.extend(system::kernel(root));
    findings.extend(system::clock(root));
    findings.extend(process::memlock(root, devices.need_locked_memory()));
    findings.extend(process::files(root));
    findings.extend(network::interfaces(root));
    findings.push(network::route(root));
    findings.extend(network::advertise(root, config));
    findings.extend(network::tcp(root));
    findings.extend(devices.findings(root));
    findings.extend(process::ptrace(root));
    findings.extend(process::namespace(root));
    findings.extend(process::seccomp(root));
    findings.extend(process::cgroup(root));
    findings.extend(memory::huge_pages(root));
    findings.extend(memory::shm(root));
    findings.extend(system::libraries(root));
    findings
}

fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|f| f.what.chars().count())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "problem",
        };
        // Names of devices are the host's, and nobody else's; controls in them would still drive a terminal.
        let found = crate::picture::plain(&finding.found);
        let (what, why) = (&finding.what, finding.why);
        let _ = writeln!(out, "{state:<7}  {what:<width$}  {found}: {why}");
        if let Some(mend) = &finding.mend {
            let _ = writeln!(out, "{:<7}  {:<width$}  $ {mend}", "", "");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Hosts as trees of files, each with what is to be said of it.
    fn trees() -> Vec<std::path::PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/doctor");
        let mut trees: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_dir())
            .collect();
        trees.sort();
        assert!(trees.len() >= 3, "only {} hosts found", trees.len());
        trees
    }

    #[test]
    fn what_is_said_of_known_hosts() {
        for tree in trees() {
            let told = text(&look(&Root::new(&tree.join("root")), &Config::default()));
            let expected = fs::read_to_string(tree.join("expected.txt")).unwrap();
            assert_eq!(told, expected, "{} should be:\n{told}", tree.display());
        }
    }

    #[test]
    fn a_host_of_which_nothing_is_known_has_no_problem() {
        let empty = tempfile::tempdir().unwrap();
        let findings = look(&Root::new(empty.path()), &Config::default());
        let problem = findings
            .iter()
            .find(|finding| finding.state == State::Problem);
        assert_eq!(problem, None);
        // Absent things are told.
        for what in ["rdma", "gpu", "route"] {
            assert!(
                findings.iter().any(|finding| finding.what == what),
                "{what}"
            );
        }
    }

    #[test]
    fn every_problem_of_the_known_hosts_has_a_line_to_paste() {
        let mut problems = 0;
        for tree in trees() {
            for finding in look(&Root::new(&tree.join("root")), &Config::default()) {
                if finding.state == State::Problem {
                    assert!(finding.mend.is_some_and(|line| !line.contains('\n')));
                    problems += 1;
                }
            }
        }
        assert!(problems >= 4, "only {problems} problems in all hosts");
    }

    #[test]
    fn files_that_are_nonsense_are_as_good_as_absent() {
        for tree in trees() {
            let spoilt = tempfile::tempdir().unwrap();
            spoil(&tree.join("root"), spoilt.path());
            let findings = look(&Root::new(spoilt.path()), &Config::default());
            assert!(!text(&findings).is_empty());
        }
    }

    /// The same tree with every file's text replaced.
    fn spoil(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            match entry.file_type().unwrap().is_dir() {
                true => spoil(&from, &to),
                false => fs::write(to, b"\xff\xfe -1 \0 99999999999999999999 :::\n\n= |").unwrap(),
            }
        }
    }
}
