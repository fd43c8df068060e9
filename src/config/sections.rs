//! The sections that configure no room of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;

use serde::Deserialize;

/// `[limits]`: what the daemon may use.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tasks that are read and not yet settled.
    pub in_flight: NonZeroU32,
    /// Bytes of tasks held in the daemon.
    #[serde(deserialize_with = "crate::units::size")]
    pub memory: u64,
    /// Bytes that the slot may lag; beyond, stalled sinks spill to the hold table.
    #[serde(deserialize_with = "crate::units::size")]
    pub slot_lag: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            in_flight: NonZeroU32::MIN.saturating_add(4095),
            memory: 64 << 20,
            slot_lag: 1 << 30,
        }
    }
}

/// `[admin]`: the HTTP listener. Takes effect with the status page.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address and port.
    pub listen: SocketAddr,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
        }
    }
}
