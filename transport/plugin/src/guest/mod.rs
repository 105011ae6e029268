//! The side that is loaded: providers and domains that are written in Rust, as a plug-in.
//!
//! - `transport`: a provider as a table; `interface`: one that is open.
//! - `lent`: regions of the host, as regions here; `handler`: the host's handler, as one here.
//! - `log`: warnings and errors go to the host's log.

mod handler;
mod interface;
mod lent;
mod log;
mod transport;

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::{Arc, OnceLock};

use moai_memory::Domain;
use moai_transport::Provider;

use crate::guard::guarded;
use crate::memory::Exported;
use crate::text;
use crate::{Opening, abi};

/// What a shared object offers. See [`export_provider!`](crate::export_provider).
pub struct Plugin {
    name: String,
    version: String,
    transports: Vec<(String, Box<Make>)>,
    domains: Vec<(String, Arc<dyn Domain>)>,
}

/// Makes a provider that opens interfaces as it is told.
pub(crate) type Make = dyn Fn(&Opening) -> Box<dyn Provider> + Send + Sync;

impl Plugin {
    /// One that offers nothing yet.
    #[must_use]
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            transports: Vec::new(),
            domains: Vec::new(),
        }
    }

    /// With a provider, under `name`: its addresses are told with that name instead of its own.
    #[must_use]
    pub fn transport<F>(mut self, name: &str, make: F) -> Self
    where
        F: Fn(&Opening) -> Box<dyn Provider> + Send + Sync + 'static,
    {
        self.transports.push((name.to_owned(), Box::new(make)));
        self
    }

    /// With a device.
    #[must_use]
    pub fn domain(mut self, name: &str, domain: Arc<dyn Domain>) -> Self {
        self.domains.push((name.to_owned(), domain));
        self
    }

    /// For ever, as the other side wants it.
    fn table(self) -> Table {
        let leak = |text: &str| -> &'static CString { Box::leak(Box::new(text::c_string(text))) };
        let transports: Vec<_> = self
            .transports
            .into_iter()
            .map(|(name, make)| transport::table(leak(&name), make))
            .collect();
        let domains: Vec<_> = self
            .domains
            .into_iter()
            .map(|(name, domain)| {
                let one: &'static Arc<Exported> =
                    Box::leak(Box::new(Exported::named(&name, &*domain)));
                one.table()
            })
            .collect();
        let (transports, domains) = (transports.leak(), domains.leak());
        Table(abi::Plugin {
            size: size_of::<abi::Plugin>() as u32,
            major: abi::MAJOR,
            minor: abi::MINOR,
            name: leak(&self.name).as_ptr(),
            version: leak(&self.version).as_ptr(),
            transports: transports.as_ptr(),
            transport_count: transports.len() as u64,
            domains: domains.as_ptr(),
            domain_count: domains.len() as u64,
        })
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transports: Vec<_> = self.transports.iter().map(|(name, _)| name).collect();
        let domains: Vec<_> = self.domains.iter().map(|(name, _)| name).collect();
        f.debug_struct("Plugin")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("transports", &transports)
            .field("domains", &domains)
            .finish()
    }
}

/// A plug-in as the other side wants it.
#[derive(Debug)]
pub struct Table(abi::Plugin);

// SAFETY: it points to what lives as long as the process, and is only looked at.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// What an entry does: makes the plug-in once, and gives its table. NULL if that panics, with a line in the host's log.
///
/// # Safety
///
/// `host` is what the entry was called with.
pub unsafe fn enter(
    host: *const abi::Host,
    once: &'static OnceLock<Table>,
    make: fn() -> Plugin,
) -> *const abi::Plugin {
    // SAFETY: by contract.
    unsafe { log::to(host) };
    match guarded(|| once.get_or_init(|| make().table())) {
        Ok(table) => &raw const table.0,
        Err(reason) => {
            tracing::error!(reason, "the plug-in cannot be made");
            ptr::null()
        }
    }
}

/// Makes the shared object that this crate is (`crate-type = ["cdylib"]`) a plug-in. Takes a function that makes it.
///
/// ```
/// use moai_transport_plugin::guest::Plugin;
///
/// fn plugin() -> Plugin {
///     Plugin::new("example", "1.0").transport("example", |opening| {
///         # use moai_transport::{Address, Error, Interface, Obstacle, Provider};
///         # #[derive(Debug)]
///         # struct MyProvider(bool);
///         # impl Provider for MyProvider {
///         #     fn name(&self) -> &'static str { "example" }
///         #     fn probe(&self) -> Result<String, String> { Err("it is an example".into()) }
///         #     fn obstacle(&self, _: &Address) -> Option<Obstacle> { None }
///         #     fn open(&self) -> Result<Box<dyn Interface + Send>, Error> { Err(Error::TooManyPeers { limit: 0 }) }
///         # }
///         Box::new(MyProvider(opening.listens))
///     })
/// }
///
/// moai_transport_plugin::export_provider!(plugin);
/// ```
#[macro_export]
macro_rules! export_provider {
    ($make:path) => {
        /// The entry of the plug-in.
        ///
        /// # Safety
        ///
        /// As `moai_provider.h` says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn moai_provider_v1(
            host: *const $crate::abi::Host,
        ) -> *const $crate::abi::Plugin {
            static TABLE: ::std::sync::OnceLock<$crate::guest::Table> =
                ::std::sync::OnceLock::new();
            // SAFETY: it is what the entry was called with.
            unsafe { $crate::guest::enter(host, &TABLE, $make) }
        }
    };
}
