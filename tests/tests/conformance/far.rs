//! The other side: a node on a thread or in a process of its own, that does what it is told and polls otherwise.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use moai_memory::MemoryKind;
use moai_transport::{Address, Error, PeerId, Rights};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::memory::Device;
use crate::node::{HANG, Node};
use crate::random::Random;
use crate::run::{Absent, caught};
use crate::ways::Way;

/// What the other side can be told, wherever it is. Peers are numbered in the order in which they came.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Addresses,
    /// Memory with the bytes of a seed.
    Memory {
        kind: String,
        bytes: u64,
        seed: u64,
    },
    /// Three neighbours of so many bytes each; answers with the number of the one between.
    Neighbours {
        kind: String,
        bytes: u64,
        seed: u64,
    },
    Read {
        region: u32,
    },
    Write {
        region: u32,
        offset: u64,
        bytes: Vec<u8>,
    },
    Register {
        region: u32,
        rights: u8,
    },
    Deregister {
        registration: usize,
    },
    /// Answers with the bytes of a region as they were right after.
    DeregisterAndRead {
        registration: usize,
        region: u32,
    },
    Key {
        peer: usize,
        registration: usize,
    },
    Peers,
    Closed {
        peer: usize,
    },
    Close {
        peer: usize,
    },
    Finish {
        peer: usize,
    },
    Send {
        peer: usize,
        message: Vec<u8>,
    },
    /// Sends back what messages come, so often.
    Echo {
        peer: usize,
        times: u64,
    },
    /// Waits for one message by waiting without an end; answers with nanoseconds of processor time.
    Idle {
        peer: usize,
    },
    /// Opens endpoints and registrations in numbers; answers with what they cost.
    Scale {
        endpoints: usize,
        regions: usize,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Number(u64),
    Text(String),
    Bytes(Vec<u8>),
    Absent(String, String),
    Failed(String),
}

impl Answer {
    #[track_caller]
    pub(crate) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            other => panic!("expected bytes, not {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            other => panic!("expected a text, not {other:?}"),
        }
    }
}

type Job = Box<dyn FnOnce(&mut Node) + Send>;

enum Task {
    Order(Order, Sender<Answer>),
    Run(Job),
}

/// Where the other side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Thread,
    Process,
}

pub(crate) struct Far {
    way: Way,
    place: Where,
}

enum Where {
    Thread {
        tasks: Option<Sender<Task>>,
        thread: Option<JoinHandle<()>>,
    },
    Process {
        child: Child,
        orders: ChildStdin,
        answers: Receiver<String>,
    },
}

impl Far {
    pub(crate) fn new(place: Place, way: Way, device: Device, seed: u64) -> Result<Self, Absent> {
        let place = match place {
            Place::Thread => {
                let node = way.node(true, device, seed)?;
                let (tasks, orders) = mpsc::channel();
                let thread = thread::spawn(move || {
                    // What went wrong is told to whoever waits for an answer, which then never comes.
                    if let Err(panic) = caught(|| serve(node, way, &orders)) {
                        drain(&orders, &panic);
                    }
                });
                Where::Thread {
                    tasks: Some(tasks),
                    thread: Some(thread),
                }
            }
            Place::Process => {
                way.prepare();
                let mut child = Command::new(std::env::current_exe().unwrap())
                    .env(CHILD, format!("{way} {seed}"))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let orders = child.stdin.take().unwrap();
                let lines = BufReader::new(child.stdout.take().unwrap()).lines();
                let (line, answers) = mpsc::channel();
                thread::spawn(move || {
                    lines
                        .map_while(Result::ok)
                        .try_for_each(|text| line.send(text))
                });
                Where::Process {
                    child,
                    orders,
                    answers,
                }
            }
        };
        Ok(Self { way, place })
    }

    /// Tells it to do something and waits until it has.
    #[track_caller]
    pub(crate) fn ask(&mut self, order: Order) -> Result<Answer, Absent> {
        self.ask_while(order, || {})
    }

    /// As [`ask`](Self::ask), with something to do again and again while it waits.
    #[track_caller]
    pub(crate) fn ask_while(
        &mut self,
        order: Order,
        mut meanwhile: impl FnMut(),
    ) -> Result<Answer, Absent> {
        let what = format!("{order:?}");
        let what = &what[..what.len().min(80)];
        let answer = match &mut self.place {
            Where::Thread { tasks, .. } => {
                let (answer, answers) = mpsc::channel();
                let task = Task::Order(order, answer);
                let sent = tasks.as_ref().unwrap().send(task);
                sent.expect("the other side is there");
                wait(&answers, &mut meanwhile)
            }
            Where::Process {
                orders, answers, ..
            } => {
                let line = serde_json::to_string(&order).unwrap();
                writeln!(orders, "{line}").expect("the other process is there");
                let line = wait(answers, &mut meanwhile);
                line.map(|line| serde_json::from_str(&line).unwrap())
            }
        };
        match answer {
            Ok(Answer::Failed(why)) => panic!("the other side, at {what}: {why}"),
            Ok(Answer::Absent(what, reason)) => Err(Absent { what, reason }),
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Timeout) => panic!("the other side hangs at {what}"),
            Err(RecvTimeoutError::Disconnected) => panic!("the other side died at {what}"),
        }
    }

    #[track_caller]
    pub(crate) fn number(&mut self, order: Order) -> Result<u64, Absent> {
        match self.ask(order)? {
            Answer::Number(number) => Ok(number),
            other => panic!("expected a number, not {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn bytes(&mut self, order: Order) -> Result<Vec<u8>, Absent> {
        self.ask(order).map(Answer::bytes)
    }

    #[track_caller]
    pub(crate) fn text(&mut self, order: Order) -> Result<String, Absent> {
        self.ask(order).map(Answer::text)
    }

    /// Lets it do something of its own; only where it is a thread.
    #[track_caller]
    pub(crate) fn run<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Node) -> R + Send + 'static,
    ) -> R {
        self.run_while(job, || {})
    }

    /// As [`run`](Self::run), with something to do again and again while it waits.
    #[track_caller]
    pub(crate) fn run_while<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Node) -> R + Send + 'static,
        mut meanwhile: impl FnMut(),
    ) -> R {
        let started = self.start(job);
        match wait(&started, &mut meanwhile) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => panic!("the other side: {panic}"),
            Err(RecvTimeoutError::Timeout) => panic!("the other side hangs"),
            Err(RecvTimeoutError::Disconnected) => panic!("the other side died"),
        }
    }

    /// As [`run`](Self::run), without waiting.
    pub(crate) fn start<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Node) -> R + Send + 'static,
    ) -> Receiver<Result<R, String>> {
        let (end, ended) = mpsc::channel();
        let job: Job = Box::new(move |node| {
            let _ = end.send(caught(|| job(node)));
        });
        match &self.place {
            Where::Thread { tasks, .. } => {
                let sent = tasks.as_ref().unwrap().send(Task::Run(job));
                sent.expect("the other side is there");
            }
            Where::Process { .. } => panic!("a process takes orders only"),
        }
        ended
    }

    /// Where to connect to it.
    pub(crate) fn address(&mut self) -> Result<Address, Absent> {
        let text = self.text(Order::Addresses)?;
        let all = text.split(' ').map(|address| address.parse().unwrap());
        Ok(self.way.choose(&all.collect::<Vec<_>>()))
    }

    /// Stops a process, or lets it go on, as a debugger or an overloaded machine does.
    pub(crate) fn stop(&self, stop: bool) {
        let signal = if stop { Signal::STOP } else { Signal::CONT };
        match &self.place {
            Where::Thread { .. } => panic!("a thread cannot be stopped"),
            Where::Process { child, .. } => {
                let id = Pid::from_child(child);
                kill_process(id, signal).unwrap();
            }
        }
    }

    /// Ends a process as a crash does, or the thread with its interface.
    pub(crate) fn kill(&mut self) {
        match &mut self.place {
            Where::Thread { tasks, thread } => {
                drop(tasks.take());
                if let Some(thread) = thread.take() {
                    let _ = thread.join();
                }
            }
            Where::Process { child, .. } => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        match &mut self.place {
            // Not waited for: it may be what hangs.
            Where::Thread { tasks, .. } => drop(tasks.take()),
            Where::Process { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Waits for an answer, with something to do meanwhile.
fn wait<R>(answers: &Receiver<R>, meanwhile: &mut dyn FnMut()) -> Result<R, RecvTimeoutError> {
    let start = Instant::now();
    loop {
        match answers.recv_timeout(Duration::from_millis(1)) {
            Err(RecvTimeoutError::Timeout) if start.elapsed() < HANG => meanwhile(),
            answer => return answer,
        }
    }
}

/// Names the way and the seed of a process that is the other side.
const CHILD: &str = "MOAI_CONFORMANCE_CHILD";

/// Whether this process is one that a test has started.
pub(crate) fn is_a_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// If this process is the other side of a test: serves it, and says so.
pub(crate) fn is_child() -> bool {
    let Ok(text) = std::env::var(CHILD) else {
        return false;
    };
    let (way, seed) = text.split_once(' ').unwrap();
    let (way, seed): (Way, u64) = (way.parse().unwrap(), seed.parse().unwrap());
    let (tasks, orders) = mpsc::channel();
    thread::spawn(move || {
        let stdin = std::io::stdin().lock();
        for line in stdin.lines().map_while(Result::ok) {
            let (answer, answers) = mpsc::channel();
            let order = serde_json::from_str(&line).unwrap();
            if tasks.send(Task::Order(order, answer)).is_err() {
                return;
            }
            let Ok(answer) = answers.recv() else { return };
            println!("{}", serde_json::to_string(&answer).unwrap());
        }
    });
    match way.node(true, Device::new(seed), seed) {
        Ok(node) => {
            if let Err(panic) = caught(|| serve(node, way, &orders)) {
                drain(&orders, &panic);
            }
        }
        Err(absent) => {
            while let Ok(Task::Order(_, answer)) = orders.recv() {
                let Absent { what, reason } = absent.clone();
                let _ = answer.send(Answer::Absent(what, reason));
            }
        }
    }
    true
}

/// Answers everything with what went wrong.
fn drain(orders: &Receiver<Task>, panic: &str) {
    while let Ok(Task::Order(_, answer)) = orders.recv() {
        let _ = answer.send(Answer::Failed(panic.to_owned()));
    }
}

fn serve(mut node: Node, way: Way, tasks: &Receiver<Task>) {
    loop {
        match tasks.try_recv() {
            Ok(Task::Run(job)) => job(&mut node),
            Ok(Task::Order(order, answer)) => {
                let _ = match caught(|| obey(&mut node, way, order)) {
                    Ok(Ok(done)) => answer.send(done),
                    Ok(Err(Absent { what, reason })) => answer.send(Answer::Absent(what, reason)),
                    Err(panic) => answer.send(Answer::Failed(panic)),
                };
            }
            Err(TryRecvError::Empty) => node.poll(Duration::from_millis(1)),
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

fn obey(node: &mut Node, way: Way, order: Order) -> Result<Answer, Absent> {
    let of = |node: &Node, peer: usize| -> PeerId { node.incoming()[peer] };
    let answer = match order {
        Order::Addresses => {
            let addresses = node.interface.addresses();
            let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            Answer::Text(texts.join(" "))
        }
        Order::Memory { kind, bytes, seed } => {
            let kind: MemoryKind = kind.parse().unwrap();
            let region = node.memory(kind, &Random(seed).bytes(bytes as usize))?;
            Answer::Number(region.into())
        }
        Order::Neighbours { kind, bytes, seed } => {
            let kind: MemoryKind = kind.parse().unwrap();
            let whole = Random(seed).bytes(3 * bytes as usize);
            let (first, rest) = node.device.region(kind, &whole)?.split_at(bytes);
            let (between, last) = rest.split_at(bytes);
            node.recorder.regions.extend([first, between, last]);
            Answer::Number(node.recorder.regions.len() as u64 - 2)
        }
        Order::Read { region } => Answer::Bytes(node.bytes(region)),
        Order::Write {
            region,
            offset,
            bytes,
        } => {
            node.write(region, offset, &bytes);
            Answer::Done
        }
        Order::Register { region, rights } => {
            match node.register(region, to_rights(rights)) {
                Err(error @ Error::Unsupported { .. }) => return Err(Absent::new(way, error)),
                registered => registered.unwrap(),
            };
            Answer::Number(node.registrations.len() as u64 - 1)
        }
        Order::Deregister { registration } => {
            let id = node.registrations[registration];
            node.interface.deregister(id).unwrap();
            Answer::Done
        }
        Order::DeregisterAndRead {
            registration,
            region,
        } => {
            let id = node.registrations[registration];
            node.interface.deregister(id).unwrap();
            Answer::Bytes(node.bytes(region))
        }
        Order::Key { peer, registration } => {
            let id = node.registrations[registration];
            let peer = of(node, peer);
            Answer::Bytes(node.interface.remote_key(peer, id).unwrap().to_vec())
        }
        Order::Peers => Answer::Number(node.incoming().len() as u64),
        Order::Closed { peer } => {
            let peer = of(node, peer);
            Answer::Text(node.closed(peer))
        }
        Order::Close { peer } => {
            node.interface.close(of(node, peer));
            Answer::Done
        }
        Order::Finish { peer } => {
            node.interface.finish(of(node, peer));
            Answer::Done
        }
        Order::Send { peer, message } => {
            node.send(of(node, peer), &message);
            Answer::Done
        }
        Order::Echo { peer, times } => {
            let peer = of(node, peer);
            for _ in 0..times {
                let message = node.message(peer);
                node.send(peer, &message);
            }
            Answer::Done
        }
        Order::Idle { peer } => {
            let peer = of(node, peer);
            let start = Instant::now();
            node.messages(peer);
            let before = processor_time();
            while node.messages(peer).is_empty() {
                assert!(start.elapsed() < HANG, "no message ends the wait");
                node.interface.poll(None, &mut node.recorder).unwrap();
            }
            Answer::Number((processor_time() - before).as_nanos() as u64)
        }
        Order::Scale { endpoints, regions } => {
            Answer::Text(crate::scale::measure(node, way, endpoints, regions)?)
        }
    };
    Ok(answer)
}

pub(crate) fn to_rights(bits: u8) -> Rights {
    [Rights::READ, Rights::WRITE, Rights::MAP]
        .into_iter()
        .filter(|right| bits & right.bits() != 0)
        .fold(Rights::NONE, Rights::and)
}

/// Processor time of this process so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
