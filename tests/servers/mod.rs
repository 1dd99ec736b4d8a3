//! Real servers that tests start for themselves, and certificates for them.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot start its server fails")]

mod certificates;
mod nginx;
mod relay;
mod secured;

pub(crate) use certificates::{Authority, Identity};
pub(crate) use nginx::{Nginx, Site};
pub(crate) use relay::{Passing, Relay};
pub(crate) use secured::{Secured, answer, asked, serve};
