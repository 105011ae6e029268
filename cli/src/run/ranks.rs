//! The processes of a run: starting them, hearing them, ending them.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
};

use moai_fabric::collectives::negotiate::Role;

use super::talk::{FromRank, ToRank};
use crate::{args, failure::Failure};

/// One rank's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) role: Role,
    pub(super) rank: u32,
    child: Child,
    stdin: Option<ChildStdin>,
}

/// What happened to a process, by its index.
#[derive(Debug)]
pub(super) enum Event {
    Said(usize, FromRank),
    /// Its output ended.
    Gone(usize),
}

/// All processes of a run; those still alive when it is dropped are killed.
#[derive(Debug)]
pub(super) struct Processes {
    pub(super) list: Vec<Process>,
    pub(super) events: Receiver<Event>,
}

impl Processes {
    /// Starts a process for every rank, producers first.
    pub(super) fn start(
        command: &args::Run,
        producers: u32,
        consumers: u32,
    ) -> Result<Self, Failure> {
        let fail =
            |error: std::io::Error| Failure::Transfer(format!("cannot start a rank: {error}"));
        let program = std::env::current_exe().map_err(fail)?;
        let (say, events) = channel();
        let mut processes = Self {
            list: Vec::new(),
            events,
        };
        let ranks = (0..producers).map(|rank| (Role::Producer, rank));
        for (role, rank) in ranks.chain((0..consumers).map(|rank| (Role::Consumer, rank))) {
            let mut child = arguments(Command::new(&program), command, role, rank)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .map_err(fail)?;
            let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
            let index = processes.list.len();
            if let Some(stdout) = stdout {
                let say = say.clone();
                std::thread::spawn(move || hear(index, BufReader::new(stdout), &say));
            }
            processes.list.push(Process {
                role,
                rank,
                child,
                stdin,
            });
        }
        Ok(processes)
    }

    /// Says a line to every process of a role. One that is gone does not hear it, which its own event tells.
    pub(super) fn tell(&mut self, role: Role, line: &ToRank) {
        let text = serde_json::to_string(line).unwrap_or_default();
        for process in self.list.iter_mut().filter(|process| process.role == role) {
            if let Some(stdin) = &mut process.stdin {
                let _ = writeln!(stdin, "{text}").and_then(|()| stdin.flush());
            }
        }
    }

    /// How an ended process ended.
    pub(super) fn how_it_ended(&mut self, index: usize) -> String {
        match self.list[index].child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }
}

impl Process {
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn name(&self) -> String {
        format!("{} {}", self.role, self.rank)
    }

    /// Says nothing more to it.
    pub(super) fn hang_up(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.list {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn arguments(mut program: Command, command: &args::Run, role: Role, rank: u32) -> Command {
    let with = |program: &mut Command, name: &str, value: Option<String>| {
        if let Some(value) = value {
            program.arg(name).arg(value);
        }
    };
    program.arg("rank");
    with(&mut program, "--role", Some(role.to_string()));
    with(&mut program, "--rank", Some(rank.to_string()));
    for (name, path) in [
        ("--producer", &command.producer),
        ("--consumer", &command.consumer),
        ("--out", &command.out),
        ("--tls", &command.tls),
    ] {
        if let Some(path) = path {
            program.arg(name).arg(path);
        }
    }
    with(&mut program, "--tokens", Some(command.tokens.to_string()));
    with(&mut program, "--seed", Some(command.seed.to_string()));
    with(
        &mut program,
        "--deadline",
        command.deadline.map(|seconds| seconds.to_string()),
    );
    with(&mut program, "--transport", command.transport.clone());
    with(&mut program, "--memory", command.memory.clone());
    with(
        &mut program,
        "--max-rate",
        command.max_rate.map(|rate| rate.to_string()),
    );
    for (flag, set) in [
        ("--insecure", command.insecure),
        ("--no-check", command.no_check),
    ] {
        if set {
            program.arg(flag);
        }
    }
    program
}

fn hear(index: usize, lines: impl BufRead, say: &Sender<Event>) {
    for line in lines.lines().map_while(Result::ok) {
        let event = match serde_json::from_str(&line) {
            Ok(line) => Event::Said(index, line),
            Err(_) => continue,
        };
        if say.send(event).is_err() {
            return;
        }
    }
    let _ = say.send(Event::Gone(index));
}
