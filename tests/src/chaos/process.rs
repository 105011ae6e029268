//! A process of an engine, as the harness holds it.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::line::{Ask, Say, Start, Stats};

/// Longer than any answer takes that comes at all, on a busy machine.
const ANSWER: Duration = Duration::from_secs(20);

/// A process that runs, and what it has said.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) start: Start,
    pub(super) addresses: Vec<String>,
    child: Child,
    stdin: Option<ChildStdin>,
    said: Receiver<(Instant, Say)>,
    seen: VecDeque<(Instant, Say)>,
}

impl Process {
    /// Starts one: `prefix` is a command that starts it elsewhere, as in another network.
    pub(super) fn start(binary: &Path, prefix: &[String], start: Start) -> Result<Self, String> {
        let mut command = match prefix.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("{}: {error}", binary.display()))?;
        let (stdin, stdout) = (
            child.stdin.take(),
            child.stdout.take().expect("it is piped"),
        );
        let (say, said) = channel();
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line);
                let what = parsed.unwrap_or_else(|error| Say::Other {
                    event: format!("{line}: {error}"),
                });
                if say.send((Instant::now(), what)).is_err() {
                    break;
                }
            }
        });
        let mut process = Self {
            start: start.clone(),
            addresses: Vec::new(),
            child,
            stdin,
            said,
            seen: VecDeque::new(),
        };
        match process.ask(&Ask::Start(start))? {
            Say::Started { addresses } => process.addresses = addresses,
            other => return Err(format!("it did not start: {other:?}")),
        }
        Ok(process)
    }

    pub(super) fn name(&self) -> &str {
        &self.start.name
    }

    /// Asks, and waits for the answer; what cannot be is an answer too.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Say, String> {
        let name = self.start.name.clone();
        let line = serde_json::to_string(ask).expect("it is made of numbers and texts");
        let stdin = self.stdin.as_mut().ok_or("it was told to end")?;
        writeln!(stdin, "{line}").map_err(|error| format!("{name}: {error}"))?;
        let start = Instant::now();
        loop {
            let left = ANSWER.saturating_sub(start.elapsed());
            match self.said.recv_timeout(left) {
                Ok((_, answer)) if answer.is_answer() => return Ok(answer),
                Ok(event) => self.seen.push_back(event),
                Err(_) => return Err(format!("{name} does not answer {line}")),
            }
        }
    }

    /// As [`ask`](Self::ask), where only one thing can be answered.
    pub(super) fn have<R>(
        &mut self,
        ask: &Ask,
        expected: impl FnOnce(&Say) -> Option<R>,
    ) -> Result<R, String> {
        let answer = self.ask(ask)?;
        expected(&answer).ok_or_else(|| format!("{} answers {ask:?} by {answer:?}", self.name()))
    }

    pub(super) fn done(&mut self, ask: &Ask) -> Result<(), String> {
        self.have(ask, |answer| matches!(answer, Say::Done).then_some(()))
    }

    pub(super) fn stats(&mut self) -> Result<Stats, String> {
        self.have(&Ask::Stats, |answer| match answer {
            Say::Stats(stats) => Some(*stats),
            _ => None,
        })
    }

    /// Waits for an event, and takes it; others stay.
    pub(super) fn wait<R>(
        &mut self,
        until: Instant,
        mut wanted: impl FnMut(&Say) -> Option<R>,
    ) -> Option<(Instant, R)> {
        let mut looked = 0;
        loop {
            while let Some((at, event)) = self.seen.get(looked) {
                if let Some(found) = wanted(event) {
                    let at = *at;
                    self.seen.remove(looked);
                    return Some((at, found));
                }
                looked += 1;
            }
            let left = until.saturating_duration_since(Instant::now());
            self.seen.push_back(self.said.recv_timeout(left).ok()?);
        }
    }

    /// All that was said and not taken.
    pub(super) fn drain(&mut self) -> Vec<Say> {
        self.seen.extend(self.said.try_iter());
        self.seen.drain(..).map(|(_, event)| event).collect()
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), String> {
        let sent = kill_process(Pid::from_child(&self.child), signal);
        sent.map_err(|error| format!("{}: {error}", self.name()))
    }

    /// Tells it to end, and waits until it has.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.stdin = None;
        let start = Instant::now();
        while start.elapsed() < ANSWER {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return match status.success() {
                    true => Ok(()),
                    false => Err(format!("{} ended with {status}", self.name())),
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{} does not end", self.name()))
    }

    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
