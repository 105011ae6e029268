//! Configuration: keys and values, checked by the fabric.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    sync::{LazyLock, Mutex, MutexGuard, TryLockError},
};

use moai_fabric::config::{Config, ConfigError};

use crate::{
    abi, abi_free,
    arguments::{Out, Text},
    failure::{Failure, Status, c_text},
    handle::{Handle, Object},
    text::Given,
};

/// What was set, over the defaults.
pub(crate) struct Settings(Mutex<BTreeMap<String, String>>);

impl Object for Settings {
    const KIND: u8 = 0x81;
    const NAME: &'static str = "moai_config";
}

/// Variables that are no settings of an engine: of the log, and of tests.
const NO_KEYS: [&str; 3] = ["MOAI_LOG", "MOAI_REQUIRE", "MOAI_SEED"];

/// Keys that need one another, and are checked together.
const TOGETHER: [&str; 5] = [
    "MOAI_TLS_CERT",
    "MOAI_TLS_KEY",
    "MOAI_TLS_CA",
    "MOAI_ALLOW",
    "MOAI_SHARED_KEY_FILE",
];

/// Names and helps of the keys.
static KEYS: LazyLock<Vec<(CString, CString)>> = LazyLock::new(|| {
    let variables = Config::default().variables().into_iter();
    let keys = variables.filter(|variable| !NO_KEYS.contains(&variable.name));
    keys.map(|variable| (c_text(variable.name), c_text(variable.help)))
        .collect()
});

fn known(key: &str) -> Result<(), Failure> {
    if KEYS
        .iter()
        .any(|(name, _)| name.as_bytes() == key.as_bytes())
    {
        return Ok(());
    }
    let names: Vec<_> = KEYS
        .iter()
        .map(|(name, _)| name.to_string_lossy())
        .collect();
    let failure = Failure::new(Status::Config, "is no key of the configuration").at(key);
    Err(match key {
        "MOAI_LOG" => failure.hint("moai_log_start takes it"),
        _ => failure.hint(format!("the keys are {}", names.join(", "))),
    })
}

pub(crate) fn refused(error: ConfigError) -> Failure {
    let failure = Failure::new(Status::Config, error.to_string());
    failure.values(&error.value, "").at(error.name)
}

impl Settings {
    fn lock(&self) -> Result<MutexGuard<'_, BTreeMap<String, String>>, Failure> {
        match self.0.try_lock() {
            Ok(settings) => Ok(settings),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let why =
                    "two threads use one configuration at the same moment, and one changes it";
                Err(Failure::new(Status::Thread, why).at("config"))
            }
        }
    }

    /// What it comes to, checked.
    pub(crate) fn read(&self) -> Result<Config, Failure> {
        let settings = self.lock()?.clone();
        Config::from_vars(settings.into_iter()).map_err(refused)
    }
}

abi! {
    fn moai_config_new(config: Out<Handle<Settings>>) {
        let place = config.place("config")?;
        place.write(Handle::new(Settings(Mutex::default()))?);
        Ok(())
    }

    fn moai_config_from_env(config: Out<Handle<Settings>>) {
        let place = config.place("config")?;
        let variables = Config::from_env().map_err(refused)?.variables();
        let set = variables.into_iter().filter(|variable| variable.set && !NO_KEYS.contains(&variable.name));
        let settings = set.map(|variable| {
            // As it was written: an effective value may say more, or less.
            let value = moai_fabric::config::variable(variable.name).unwrap_or(variable.value);
            (variable.name.to_owned(), value)
        });
        place.write(Handle::new(Settings(Mutex::new(settings.collect())))?);
        Ok(())
    }

    fn moai_config_set(config: Handle<Settings>, key: Text, value: Text) {
        let config = config.get("config")?;
        let (key, value) = (key.read("key")?, value.read("value")?);
        known(key)?;
        let mut settings = config.lock()?;
        if !TOGETHER.contains(&key) {
            // With the others: what MOAI_PROVIDERS brings, MOAI_TRANSPORTS may name.
            let mut others = settings.clone();
            others.retain(|other, _| !TOGETHER.contains(&other.as_str()));
            others.insert(key.to_owned(), value.to_owned());
            Config::from_vars(others.into_iter()).map_err(refused)?;
        }
        settings.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    fn moai_config_get(config: Handle<Settings>, key: Text, value: Out<Given>) {
        let config = config.get("config")?;
        let key = key.read("key")?;
        let place = value.text("value")?;
        known(key)?;
        let variables = config.read()?.variables();
        let found = variables.into_iter().find(|variable| variable.name == key);
        place.give(found.map(|variable| variable.value).unwrap_or_default());
        Ok(())
    }

    fn moai_config_check(config: Handle<Settings>) {
        config.get("config")?.read().map(drop)
    }
}

abi_free! {
    fn moai_config_free(config: Handle<Settings>);
}

#[unsafe(no_mangle)]
extern "C" fn moai_config_key_count() -> u32 {
    KEYS.len() as u32
}

#[unsafe(no_mangle)]
extern "C" fn moai_config_key(index: u32) -> *const c_char {
    let key = KEYS.get(index as usize);
    key.map_or(std::ptr::null(), |(name, _)| name.as_ptr())
}

#[unsafe(no_mangle)]
extern "C" fn moai_config_key_help(index: u32) -> *const c_char {
    let key = KEYS.get(index as usize);
    key.map_or(std::ptr::null(), |(_, help)| help.as_ptr())
}
