//! Splits wide accesses into the byte accesses that byte-wide devices see.

use trapline_device::AccessSize;

/// Reads `size` bytes at consecutive offsets, lowest first.
pub(crate) fn read(offset: u16, size: AccessSize, mut byte: impl FnMut(u16) -> u8) -> u32 {
    if size == AccessSize::Byte {
        return byte(offset).into();
    }
    let mut value = [0; 4];
    for (to, i) in value.iter_mut().zip(0..size.bytes() as u16) {
        *to = byte(offset.wrapping_add(i));
    }
    u32::from_le_bytes(value)
}

/// Writes `size` bytes at consecutive offsets, lowest first.
pub(crate) fn write(offset: u16, size: AccessSize, value: u32, mut byte: impl FnMut(u16, u8)) {
    if size == AccessSize::Byte {
        return byte(offset, value as u8);
    }
    for (from, i) in value.to_le_bytes().into_iter().zip(0..size.bytes() as u16) {
        byte(offset.wrapping_add(i), from);
    }
}

/// Implements [`trapline_device::PortIo`] for a device that has `read_byte(region, offset) -> u8` and
/// `write_byte(region, offset, u8)`.
macro_rules! byte_ports {
    ($device:ty) => {
        impl trapline_device::PortIo for $device {
            fn read(&mut self, region: usize, offset: u16, size: trapline_device::AccessSize) -> u32 {
                crate::bytewise::read(offset, size, |offset| self.read_byte(region, offset))
            }

            fn write(&mut self, region: usize, offset: u16, size: trapline_device::AccessSize, value: u32) {
                crate::bytewise::write(offset, size, value, |offset, v| self.write_byte(region, offset, v));
            }

            fn read_block(
                &mut self,
                region: usize,
                offset: u16,
                size: trapline_device::AccessSize,
                data: &mut [u8],
            ) {
                trapline_device::read_each(self, region, offset, size, data);
            }

            fn write_block(
                &mut self,
                region: usize,
                offset: u16,
                size: trapline_device::AccessSize,
                data: &[u8],
            ) {
                trapline_device::write_each(self, region, offset, size, data);
            }
        }
    };
}
pub(crate) use byte_ports;

/// Returns a [`trapline_device::RestoreError`] unless `ok`.
pub(crate) fn check(
    device: &'static str,
    ok: bool,
    what: impl FnOnce() -> String,
) -> Result<(), trapline_device::RestoreError> {
    if ok { Ok(()) } else { Err(trapline_device::RestoreError { device, what: what() }) }
}
