//! Real servers that tests start for themselves, and certificates for them.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot start its server fails")]
#![allow(unused_imports, reason = "each test binary uses a part of it")]

#[cfg(feature = "cloud")]
mod azurite;
mod certificates;
mod nginx;
mod relay;
mod s3;
mod secured;

#[cfg(feature = "cloud")]
pub(crate) use azurite::{ACCOUNT, Azurite, KEY};
pub(crate) use certificates::{Authority, Identity};
pub(crate) use nginx::{Nginx, Site};
pub(crate) use relay::{Passing, Relay};
pub(crate) use s3::{Refusal, S3Server, Seen};
pub(crate) use secured::{Secured, answer, asked, serve};
