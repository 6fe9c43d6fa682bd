//! The tests whose guests run 64-bit code once more, with host code for all of it: see `common/mode.rs`.

#![allow(clippy::duplicate_mod)] // Each of them has the module of common things.

#[path = "../chains.rs"]
mod chains;
#[path = "../conformance.rs"]
mod conformance;
#[path = "../host/main.rs"]
mod host;
#[path = "../long.rs"]
mod long;
#[path = "../modes.rs"]
mod modes;
#[path = "../vmx/main.rs"]
mod vmx;
#[path = "../x87.rs"]
mod x87;
