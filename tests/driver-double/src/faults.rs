//! What goes wrong, told before the process begins: the environment variable `FARFEED_DOUBLE`, for all devices alike.

use std::sync::LazyLock;

use crate::device::DEVICES;

/// The settings of this process.
pub(crate) static SETTINGS: LazyLock<Settings> =
    LazyLock::new(|| Settings::parse(&std::env::var("FARFEED_DOUBLE").unwrap_or_default()));

/// `name=value` pairs with commas between them; see the crate's documentation for the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) version: u32,
    pub(crate) init_error: u32,
    /// What the compiler says of any PTX; 0 for nothing.
    pub(crate) ptx_error: u32,
    pub(crate) bytes_per_second: u64,
    /// The n-th of its kind fails; 0 for none.
    pub(crate) device_allocation: i64,
    pub(crate) registration: i64,
    pub(crate) copy: i64,
    pub(crate) operation: i64,
    /// What every call says after `operation` of them.
    pub(crate) loss: u32,
    pub(crate) guard: Guard,
    pub(crate) devices: usize,
    /// Whether kernels that measure have their twins.
    pub(crate) twins: bool,
}

/// What becomes of a host write into memory that a copy may still be reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nothing: memory stays writable.
    Off,
    /// It is reported, and carried out; unless something else was told.
    Report,
    /// It ends the process, at the line that writes.
    Die,
}

impl Settings {
    fn parse(text: &str) -> Settings {
        let mut settings = Settings {
            version: 13_000,
            init_error: 0,
            ptx_error: 0,
            bytes_per_second: 1_000_000_000,
            device_allocation: 0,
            registration: 0,
            copy: 0,
            operation: 0,
            loss: 999,
            guard: Guard::Report,
            devices: DEVICES,
            twins: false,
        };
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || value.parse::<u64>().unwrap_or_else(|_| panic!("FARFEED_DOUBLE: {pair:?} has no number"));
            match name {
                "version" => settings.version = number() as u32,
                "init" => settings.init_error = number() as u32,
                "ptx" => settings.ptx_error = number() as u32,
                "rate" => settings.bytes_per_second = number(),
                "device-memory" => settings.device_allocation = number() as i64,
                "host-memory" => settings.registration = number() as i64,
                "copy" => settings.copy = number() as i64,
                "operation" => settings.operation = number() as i64,
                "loss" => settings.loss = number() as u32,
                "guard" => {
                    settings.guard = match value {
                        "off" => Guard::Off,
                        "report" => Guard::Report,
                        "die" => Guard::Die,
                        _ => panic!("FARFEED_DOUBLE: guard=off, guard=report or guard=die"),
                    }
                }
                "devices" => settings.devices = (number() as usize).min(DEVICES),
                "twins" => {
                    assert_eq!(value, "measure", "FARFEED_DOUBLE: twins=measure");
                    settings.twins = true;
                }
                _ => panic!("FARFEED_DOUBLE knows no {name:?}"),
            }
        }
        settings
    }
}
