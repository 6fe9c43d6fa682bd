//! `kvm_fpu` as a view of the XSAVE area: the kernel's own requests for it leave out MXCSR, and do not say
//! that the registers are in use.

use kvm_bindings::{kvm_fpu, kvm_xsave};

/// Bytes of the legacy region, which FXSAVE writes too (SDM vol. 1 table 10-2).
const LEGACY: usize = 512;
const ST0: usize = 32;
const XMM0: usize = 160;
/// XSTATE_BV as a word of 32 bits, and its bits for x87 and SSE.
const XSTATE_BV: usize = LEGACY / 4;
const X87_AND_SSE: u32 = 3;

/// What of an XSAVE area `kvm_fpu` shows.
pub(crate) fn from_xsave(xsave: &kvm_xsave) -> kvm_fpu {
    let mut image = [0; LEGACY];
    for (bytes, word) in image.chunks_exact_mut(4).zip(xsave.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let number = |at: usize, bytes: usize| (0..bytes).fold(0, |n, i| n | u64::from(image[at + i]) << (8 * i));
    let mut fpu = kvm_fpu {
        fcw: number(0, 2) as u16,
        fsw: number(2, 2) as u16,
        ftwx: image[4],
        last_opcode: number(6, 2) as u16,
        last_ip: number(8, 8),
        last_dp: number(16, 8),
        mxcsr: number(24, 4) as u32,
        ..Default::default()
    };
    for (to, from) in fpu.fpr.iter_mut().zip(image[ST0..XMM0].as_chunks::<16>().0) {
        *to = *from;
    }
    for (to, from) in fpu.xmm.iter_mut().zip(image[XMM0..].as_chunks::<16>().0) {
        *to = *from;
    }
    fpu
}

/// Puts it into an XSAVE area. The other components stay.
pub(crate) fn to_xsave(fpu: &kvm_fpu, xsave: &mut kvm_xsave) {
    let mut image = [0; LEGACY];
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    image[4] = fpu.ftwx;
    image[6..8].copy_from_slice(&fpu.last_opcode.to_le_bytes());
    image[8..16].copy_from_slice(&fpu.last_ip.to_le_bytes());
    image[16..24].copy_from_slice(&fpu.last_dp.to_le_bytes());
    image[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    image[ST0..XMM0].copy_from_slice(fpu.fpr.as_flattened());
    image[XMM0..XMM0 + 256].copy_from_slice(fpu.xmm.as_flattened());
    for (word, bytes) in xsave.region.iter_mut().zip(image.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    xsave.region[XSTATE_BV] |= X87_AND_SSE;
}
