//! Shared memory, as something that can be opened.

use std::sync::Arc;

use moai_memory::Domain;
use moai_transport::{Address, Error, Interface, Obstacle, Provider};

use crate::address::{Here, NAME};
use crate::copying::Devices;
use crate::{ShmConfig, ShmInterface};

/// Opens [`ShmInterface`]s.
#[derive(Clone, Debug, Default)]
pub struct ShmProvider {
    config: ShmConfig,
    devices: Devices,
}

impl ShmProvider {
    /// The provider of interfaces that are opened so.
    #[must_use]
    pub fn new(config: ShmConfig) -> Self {
        let devices = Devices::default();
        Self { config, devices }
    }

    /// With a device that can import memory of peers; see [`ShmInterface::with_devices`].
    #[must_use]
    pub fn with_device(mut self, device: Arc<dyn Domain>) -> Self {
        self.devices.0.push(device);
        self
    }
}

impl Provider for ShmProvider {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<String, String> {
        Here::look()?;
        let foreign = if self.config.foreign {
            "other memory is tried with process_vm_readv"
        } else {
            "other memory is copied by both sides"
        };
        Ok(format!("memfd and Unix sockets; {foreign}"))
    }

    fn obstacle(&self, address: &Address) -> Option<Obstacle> {
        match Here::look() {
            Ok(here) => here.socket(address).err(),
            Err(reason) => Some(Obstacle::Refused(reason)),
        }
    }

    fn open(&self) -> Result<Box<dyn Interface + Send>, Error> {
        let (config, devices) = (self.config.clone(), self.devices.0.clone());
        Ok(Box::new(ShmInterface::with_devices(config, devices)?))
    }
}
