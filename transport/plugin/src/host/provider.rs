//! One transport of a plug-in.

use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;
use std::ptr;

use moai_transport::{Address, Error, Interface, Obstacle, Provider};

use super::interface::PluginInterface;
use crate::abi;
use crate::errors::{About, heard};
use crate::text::{self, Said};

/// How interfaces are to be opened: what a host tells every plug-in. Whatever else one wants to know it reads from
/// variables of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs)] // Callers write out what they set.
pub struct Opening {
    /// Whether peers connect to it.
    pub listens: bool,
    /// Where the host's other transports listen, `ADDRESS:PORT`.
    pub bind: Option<String>,
    /// What they tell peers instead.
    pub advertise: Option<String>,
}

/// A transport of a plug-in.
#[derive(Clone)]
pub struct PluginProvider {
    pub(super) name: &'static str,
    pub(super) table: &'static abi::Transport,
    /// The plug-in, its version and its file.
    pub(super) origin: String,
    pub(super) path: PathBuf,
    pub(super) opening: Opening,
}

// SAFETY: a table has addresses of functions, and a context that by the rules of the header any thread may use, several
// at once; nothing of it is changed.
unsafe impl Send for PluginProvider {}
// SAFETY: as above.
unsafe impl Sync for PluginProvider {}

impl PluginProvider {
    /// The same, which opens interfaces so.
    #[must_use]
    pub fn opened(mut self, opening: Opening) -> Self {
        self.opening = opening;
        self
    }

    /// The file that it was loaded from.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Provider for PluginProvider {
    fn name(&self) -> &'static str {
        self.name
    }

    fn probe(&self) -> Result<String, String> {
        let probe = self.table.probe.ok_or("it has no probe")?;
        let mut said = Said::new();
        let answer = text::ask(|sentence| {
            // SAFETY: by the rules of the header, with what it may write to.
            unsafe { probe(self.table.context, sentence, said.clean()) }
        });
        let origin = &self.origin;
        match answer {
            Ok((abi::OK, sentence)) => Ok(format!("{sentence}; {origin}")),
            Ok((status, _)) => {
                let about = About {
                    provider: self.name,
                    call: "probe",
                    ..About::default()
                };
                Err(format!("{}; {origin}", heard(status, &said, &about)))
            }
            Err(problem) => Err(format!("its answer is {problem}; {origin}")),
        }
    }

    fn obstacle(&self, address: &Address) -> Option<Obstacle> {
        if address.provider() != self.name {
            return Some(Obstacle::Elsewhere(format!(
                "it is an address of provider {}",
                address.provider()
            )));
        }
        let text = text::c_string(&address.to_string());
        let mut said = Said::new();
        let obstacle = self.table.obstacle?;
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe { obstacle(self.table.context, text.as_ptr(), said.clean()) };
        match status {
            abi::OK => None,
            abi::E_ELSEWHERE => Some(Obstacle::Elsewhere(said.sentence())),
            abi::E_OBSTACLE => Some(Obstacle::Refused(said.sentence())),
            status => Some(Obstacle::Refused(format!(
                "it answers with status {status}: {}",
                said.sentence()
            ))),
        }
    }

    fn open(&self) -> Result<Box<dyn Interface + Send>, Error> {
        let about = About {
            provider: self.name,
            call: "open",
            ..About::default()
        };
        let c_text = |text: &Option<String>| text.as_deref().map(text::c_string);
        let (bind, advertise) = (c_text(&self.opening.bind), c_text(&self.opening.advertise));
        let pointer =
            |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let options = abi::Options {
            size: size_of::<abi::Options>() as u32,
            listens: u32::from(self.opening.listens),
            bind: pointer(&bind),
            advertise: pointer(&advertise),
        };
        let mut capabilities = abi::Capabilities {
            size: size_of::<abi::Capabilities>() as u32,
            one_sided: 0,
            encrypted: 0,
            reserved: [0; 2],
            max_message: 0,
            max_batch: 0,
            max_operation: 0,
            lanes: 0,
            reserved2: 0,
            reach: [[0; 16]; 4],
        };
        let (mut raw, mut said) = (ptr::null_mut(), Said::new());
        let open = self.table.open.expect("checked when it was loaded");
        // SAFETY: by the rules of the header, with what it may write to.
        let status = unsafe {
            open(
                self.table.context,
                &raw const options,
                &raw mut raw,
                &raw mut capabilities,
                said.clean(),
            )
        };
        if status < 0 {
            return Err(heard(status, &said, &about));
        }
        if status != abi::OK || raw.is_null() {
            return Err(Error::Provider {
                provider: self.name,
                call: "open",
                problem: format!("status {status}, and an interface at {raw:?}"),
            });
        }
        // SAFETY: it was just opened for us.
        let interface = unsafe { PluginInterface::new(self.name, self.table, raw, &capabilities) }?;
        Ok(Box::new(interface))
    }
}

impl fmt::Debug for PluginProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginProvider")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("opening", &self.opening)
            .finish_non_exhaustive()
    }
}
