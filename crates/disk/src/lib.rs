//! Disk back ends: image formats, cache modes, I/O engines
