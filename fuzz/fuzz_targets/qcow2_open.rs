//! Any bytes as a qcow2 image: opened, with its snapshots, read, written and checked.
#![no_main]

libfuzzer_sys::fuzz_target!(|image: &[u8]| trapline_disk::fuzz_image(image));
