//! Against the host's own floating point, flags and all.
#![allow(unsafe_code)]

mod image;
mod random;
mod sse;
mod transcendental;
mod x87;
