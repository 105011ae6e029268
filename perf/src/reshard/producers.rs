//! The process of the producer ranks: each is a thread, and serves once a round.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use moai_fabric::{
    Fabric, Server,
    collectives::{
        execute::{Pool, Requested},
        transfer::Session,
    },
    synthetic,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::case::Case;
use crate::{failure::Failure, usage};

/// The hidden command by which the program starts itself.
pub(crate) const COMMAND: &str = "producers";

/// What is asked of the process, in lines of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Call {
    /// Fills the pools of one more case.
    Open(Box<Case>),
    /// Serves a case once, in a session: says where, and then how it ended.
    Serve(usize, String),
    /// Forgets all cases.
    Close,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Done,
    /// Addresses of each rank.
    Listening(Vec<Vec<String>>),
    /// CPU time of the process from there on.
    Served {
        cpu_ns: u64,
    },
    Failed(String),
}

/// The process, as the other one sees it.
#[derive(Debug)]
pub(super) struct Producers {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    open: usize,
}

impl Producers {
    pub(super) fn start() -> Result<Self, Failure> {
        let lost = Failure::lost("cannot start the producers' process");
        let program = std::env::current_exe().map_err(&lost)?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(&lost)?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let from = from.ok_or_else(|| Failure::Lost("no pipe to the producers".to_owned()))?;
        Ok(Self {
            child,
            to,
            from: BufReader::new(from),
            open: 0,
        })
    }

    /// Opens a case, and names it.
    pub(super) fn open(&mut self, case: &Case) -> Result<usize, Failure> {
        self.say(&Call::Open(Box::new(case.clone())))?;
        match self.hear()? {
            Reply::Done => {
                self.open += 1;
                Ok(self.open - 1)
            }
            other => Err(unexpected(other)),
        }
    }

    /// Forgets all cases.
    pub(super) fn close(&mut self) -> Result<(), Failure> {
        self.open = 0;
        self.say(&Call::Close)?;
        match self.hear()? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Begins to serve a case: the addresses of each rank.
    pub(super) fn serve(
        &mut self,
        case: usize,
        session: &Session,
    ) -> Result<Vec<Vec<String>>, Failure> {
        self.say(&Call::Serve(case, session.secret()))?;
        match self.hear()? {
            Reply::Listening(addresses) => Ok(addresses),
            other => Err(unexpected(other)),
        }
    }

    /// The CPU time that serving took, once every rank has ended.
    pub(super) fn served(&mut self) -> Result<Duration, Failure> {
        match self.hear()? {
            Reply::Served { cpu_ns } => Ok(Duration::from_nanos(cpu_ns)),
            other => Err(unexpected(other)),
        }
    }

    fn say(&mut self, call: &Call) -> Result<(), Failure> {
        let gone = || Failure::Lost("the producers' process is gone".to_owned());
        write_line(self.to.as_mut().ok_or_else(gone)?, call)
    }

    fn hear(&mut self) -> Result<Reply, Failure> {
        let gone = || Failure::Lost("the producers' process is gone".to_owned());
        read_line(&mut self.from)?.ok_or_else(gone)
    }
}

impl Drop for Producers {
    fn drop(&mut self) {
        // Without anybody to ask it ends by itself, unless it is in the middle of something.
        self.to = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unexpected(reply: Reply) -> Failure {
    match reply {
        Reply::Failed(text) => Failure::Lost(text),
        other => Failure::Lost(format!("the producers' process said {other:?}")),
    }
}

fn write_line(out: &mut impl Write, line: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string(line).map_err(|error| Failure::Lost(error.to_string()))?;
    text.push('\n');
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(Failure::lost("the other process is gone"))
}

fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>, Failure> {
    let mut text = String::new();
    let read = from.read_line(&mut text);
    if read.map_err(Failure::lost("the other process is gone"))? == 0 {
        return Ok(None);
    }
    let line = serde_json::from_str(&text);
    line.map(Some)
        .map_err(|error| Failure::Lost(error.to_string()))
}

/// What the started process does.
pub(crate) fn producers() -> Result<(), Failure> {
    let mut cases: Vec<Open> = Vec::new();
    let (mut from, mut to) = (std::io::stdin().lock(), std::io::stdout().lock());
    while let Some(call) = read_line(&mut from)? {
        let done = match call {
            Call::Open(case) => Open::new(&case).map(|open| {
                cases.push(open);
                Reply::Done
            }),
            Call::Close => {
                cases.clear();
                Ok(Reply::Done)
            }
            Call::Serve(case, session) => {
                match (cases.get_mut(case), Session::from_secret(&session)) {
                    (Some(open), Some(session)) => open.serve(session, &mut to),
                    _ => Err(Failure::Input(format!("case {case} is not open"))),
                }
            }
        };
        let reply = done.unwrap_or_else(|failure| Reply::Failed(failure.to_string()));
        write_line(&mut to, &reply)?;
    }
    Ok(())
}

/// A case with its pools.
struct Open {
    fabric: Fabric,
    requested: Arc<Requested>,
    pools: Vec<Pool>,
}

impl Open {
    fn new(case: &Case) -> Result<Self, Failure> {
        let (fabric, requested) = (case.fabric()?, case.agree()?);
        let agreed = requested.agreed();
        let kind = fabric.pool_kind();
        let ranks = 0..agreed.producer.ranks.len() as u32;
        let fill = |rank| {
            let request = requested.producer();
            synthetic::producer_pool_in(kind, &agreed.producer, request, rank, case.seed)
        };
        let pools: Result<Vec<Pool>, _> = ranks.map(fill).collect();
        let pools = pools.map_err(|error| Failure::Lost(error.to_string()))?;
        Ok(Self {
            fabric,
            requested,
            pools,
        })
    }

    fn serve(&mut self, session: Session, to: &mut impl Write) -> Result<Reply, Failure> {
        let Self {
            fabric,
            requested,
            pools,
        } = self;
        let fabric = fabric.clone().with_session(session);
        let listen = |_: &Pool| {
            let server = fabric.listen();
            server.map_err(|error| Failure::Lost(error.to_string()))
        };
        let servers: Vec<Server> = pools.iter().map(listen).collect::<Result<_, _>>()?;
        let addresses = servers.iter().map(|server| {
            let addresses = server.addresses().iter();
            addresses.map(ToString::to_string).collect()
        });
        let before = usage::cpu();
        write_line(to, &Reply::Listening(addresses.collect()))?;
        let failures: Vec<String> = thread::scope(|scope| {
            let ranks: Vec<_> = (0..)
                .zip(servers)
                .zip(pools)
                .map(|((rank, server), pool)| {
                    let requested = Arc::clone(requested);
                    scope.spawn(move || server.serve(&requested, rank, pool, &mut |_, _| {}))
                })
                .collect();
            let ended = ranks.into_iter().filter_map(|rank| match rank.join() {
                Ok(report) => report
                    .failure()
                    .map(|failure| format!("producer {}: {failure}", report.rank)),
                Err(_) => Some("a producer panicked".to_owned()),
            });
            ended.collect()
        });
        match failures.first() {
            Some(failure) => Err(Failure::Lost(failure.clone())),
            None => Ok(Reply::Served {
                cpu_ns: (usage::cpu() - before).as_nanos() as u64,
            }),
        }
    }
}
