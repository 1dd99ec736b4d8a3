//! The part of the library's `device` that threads share.

#[path = "../../../../src/device/home.rs"]
pub(crate) mod home;
