//! Compressed clusters.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use super::header::Compression;
use crate::contract::{DiskError, Result};

/// Where a compressed cluster lies: bytes need no alignment, and the length is an upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub offset: u64,
    pub len: u64,
}

impl Descriptor {
    /// From an L2 entry with the compressed bit set.
    pub fn decode(entry: u64, cluster_bits: u32) -> Self {
        let split = 62 - (cluster_bits - 8);
        let offset = entry & ((1 << split) - 1);
        let sectors = (entry & ((1 << 62) - 1)) >> split;
        Self { offset, len: (sectors + 1) * 512 - (offset & 511) }
    }

    /// The host clusters that it touches.
    pub fn clusters(self, cluster_bits: u32) -> std::ops::RangeInclusive<u64> {
        self.offset >> cluster_bits..=(self.offset + self.len - 1) >> cluster_bits
    }
}

/// Decompresses to exactly `len` bytes.
pub fn decompress(kind: Compression, data: &[u8], len: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; len];
    let read = match kind {
        Compression::Zlib => flate2::read::DeflateDecoder::new(data).read_exact(&mut out),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(data).and_then(|mut decoder| {
            // A frame may ask for a window of gigabytes; clusters have 2 MiB at most.
            decoder.window_log_max(24)?;
            decoder.single_frame().read_exact(&mut out)
        }),
    };
    read.map_err(|e| DiskError::corrupt(format!("a compressed cluster: {e}")))?;
    Ok(out)
}

/// The clusters decompressed last: guests read a cluster in several pieces.
#[derive(Default)]
pub struct Decompressed(VecDeque<(Descriptor, Arc<Vec<u8>>)>);

impl Decompressed {
    const KEPT: usize = 4;

    pub fn get(&self, at: Descriptor) -> Option<Arc<Vec<u8>>> {
        self.0.iter().find(|(held, _)| *held == at).map(|(_, data)| data.clone())
    }

    pub fn put(&mut self, at: Descriptor, data: Arc<Vec<u8>>) {
        self.0.truncate(Self::KEPT - 1);
        self.0.push_front((at, data));
    }
}
