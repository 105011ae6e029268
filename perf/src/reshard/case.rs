//! What is moved in one case: two sides that agree, and the transport.

use std::{path::PathBuf, sync::Arc};

use moai_fabric::{
    Fabric,
    collectives::{descriptor::Descriptor, digest::Coverage, execute::Requested, request::Request},
    config::Config,
    files,
};
use serde::{Deserialize, Serialize};

use super::SideSpec;
use crate::{args::Transport, cases::LLAMA3_8B, failure::Failure};

/// A case, as one process tells it the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(super) from: Source,
    pub(super) to: Source,
    pub(super) transport: Transport,
    /// How much is digested.
    pub(super) digest: Coverage,
    /// Of the request, where no file says so.
    pub(super) tokens: u32,
    pub(super) seed: u64,
}

/// Where a side's description comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// A short name, see [`SideSpec`].
    Named(String),
    File(PathBuf),
}

impl Source {
    pub(super) fn named(spec: &SideSpec) -> Self {
        Self::Named(spec.name())
    }

    /// As rows have it.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Named(name) => name.clone(),
            Self::File(path) => path.display().to_string(),
        }
    }

    fn descriptor(&self, tokens: u32, seed: u64) -> Result<(Descriptor, Request), Failure> {
        match self {
            Self::Named(name) => {
                let spec: SideSpec = name.parse().map_err(Failure::Input)?;
                spec.describe(LLAMA3_8B, tokens, seed)
                    .map_err(Failure::Input)
            }
            Self::File(path) => {
                files::read_description(path).map_err(|error| Failure::Input(error.to_string()))
            }
        }
    }
}

impl Case {
    /// The two sides and what they agreed on.
    pub(super) fn agree(&self) -> Result<Arc<Requested>, Failure> {
        let mut producer = self.from.descriptor(self.tokens, self.seed)?;
        let mut consumer = self.to.descriptor(self.tokens, self.seed)?;
        for (_, request) in [&mut producer, &mut consumer] {
            request.coverage = self.digest;
        }
        let requested = Requested::agree(producer, consumer)
            .map_err(|refusal| Failure::Input(refusal.to_string()))?;
        Ok(Arc::new(requested))
    }

    /// The stack that moves it.
    pub(super) fn fabric(&self) -> Result<Fabric, Failure> {
        let mut config = Config::from_env().map_err(|error| Failure::Input(error.to_string()))?;
        config.transports = match self.transport {
            Transport::Tcp => Some(vec!["tcp".to_owned()]),
            Transport::Shm => Some(vec!["shm".to_owned()]),
            Transport::Auto => None,
            Transport::Raw => {
                return Err(Failure::Input(
                    "plain sockets know no cache: --transport tcp, shm or auto".to_owned(),
                ));
            }
        };
        Ok(Fabric::new(config))
    }

    /// The same with a request of few tokens, small enough to compare every element with the reference.
    pub(super) fn small(&self) -> Self {
        Self {
            tokens: self.tokens.min(FEW_TOKENS),
            ..self.clone()
        }
    }
}

/// Tokens whose every element is compared: no multiple of a page.
const FEW_TOKENS: u32 = 45;
