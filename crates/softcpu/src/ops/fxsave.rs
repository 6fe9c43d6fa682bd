//! FXSAVE, FXRSTOR and the XSAVE family (SDM volume 1, sections 10.5 and 13): x87 and SSE state in one
//! image. Both look the same up to byte 512; XSAVE adds a header, and PKRU behind it.
//!
//! The modified optimisation is left out: XSAVEOPT and XSAVES leave out only what is in its initial state.
//! There is no supervisor state, so XSAVES and XRSTORS move what XSAVEC does. Where CR4.OSFXSR is clear, FXSAVE and FXRSTOR leave the XMM registers alone, and
//! FXRSTOR also MXCSR.

use trapline_vmx::controls::SecondaryControls;

use crate::cpu::{Cpu, Stop, cr0, cr4, reg, vector};
use crate::fpu::{Mxcsr, X87};
use crate::handler;
use crate::int::Int;
use crate::mmu::Kind;
use crate::op::Op;
use crate::sse::Xmm;

/// `Op::aux`: the form with REX.W, whose x87 pointers have 64 bits.
pub const WIDE: u16 = 1;

/// Components, as bits of XCR0.
pub const X87_STATE: u64 = 1;
/// See [`X87_STATE`].
pub const SSE_STATE: u64 = 2;
/// See [`X87_STATE`].
pub const PKRU_STATE: u64 = 1 << 9;
/// Where PKRU is in the standard format: where Intel's processors have it. Compacted, it follows the header.
pub const PKRU_AT: usize = 2688;
/// Bytes of PKRU's component, the upper half unused.
pub const PKRU_BYTES: usize = 8;
/// XCOMP_BV: the compacted format.
const COMPACTED: u64 = 1 << 63;

/// Places in the image.
const MXCSR_AT: usize = 24;
const MXCSR_INITIAL: u32 = 0x1f80;
const XMM_AT: usize = 160;
/// Length of the legacy region, then of the header.
const LEGACY: usize = 512;
const HEADER: usize = 64;

/// The image that XSAVE and FXSAVE share.
type Image = [u8; LEGACY];

/// An image that FXRSTOR or XRSTOR would raise #GP for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// MXCSR has reserved bits set.
    #[error("reserved bits of MXCSR are set: {0:#x}")]
    Mxcsr(u32),
    /// The header names components that are not enabled or does not make sense.
    #[error("bad XSAVE header: XSTATE_BV {0:#x}, XCOMP_BV {1:#x}")]
    Header(u64, u64),
}

fn word(image: &[u8], at: usize) -> u64 {
    image.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn mxcsr_in(image: &Image) -> Result<Mxcsr, ImageError> {
    let value = word(image, MXCSR_AT) as u32;
    if value & !Mxcsr::MASK == 0 { Ok(Mxcsr::new(value)) } else { Err(ImageError::Mxcsr(value)) }
}

/// An XSAVE header, of which everything past the two words must be zero.
#[derive(Clone, Copy, Debug)]
struct Header {
    xstate_bv: u64,
    xcomp_bv: u64,
}

impl Header {
    /// Checks the header as XRSTOR does where `xcr0` is enabled.
    fn parse(bytes: &[u8; HEADER], xcr0: u64) -> Result<Self, ImageError> {
        let h = Self { xstate_bv: word(bytes, 0), xcomp_bv: word(bytes, 8) };
        let reserved = |from: usize, to: usize| bytes[from..to].iter().any(|b| *b != 0);
        let bad = if h.compacted() {
            h.xcomp_bv & !COMPACTED & !xcr0 != 0 || h.xstate_bv & !h.components() != 0 || reserved(16, HEADER)
        } else {
            h.xcomp_bv != 0 || h.xstate_bv & !xcr0 != 0 || reserved(16, 24)
        };
        if bad { Err(ImageError::Header(h.xstate_bv, h.xcomp_bv)) } else { Ok(h) }
    }

    fn compacted(self) -> bool {
        self.xcomp_bv & COMPACTED != 0
    }

    /// What a compacted image holds.
    fn components(self) -> u64 {
        self.xcomp_bv & !COMPACTED
    }

    /// Where PKRU is.
    fn pkru_at(self) -> usize {
        if self.compacted() { LEGACY + HEADER } else { PKRU_AT }
    }
}

impl Cpu {
    /// XMM registers that the mode has.
    fn xmm_count(&self) -> usize {
        if self.long64 { 16 } else { 8 }
    }

    fn put_mxcsr(&self, image: &mut Image) {
        image[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&self.mxcsr.value().to_le_bytes());
        image[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&Mxcsr::MASK.to_le_bytes());
    }

    fn put_xmm(&self, image: &mut Image) {
        for (slot, v) in image[XMM_AT..].chunks_exact_mut(16).zip(&self.xmm[..16]) {
            slot.copy_from_slice(&v.0);
        }
    }

    /// Takes `count` XMM registers from an image.
    fn take_xmm(&mut self, image: &Image, count: usize) {
        let registers = self.xmm.iter_mut().take(count);
        for (v, slot) in registers.zip(image[XMM_AT..].as_chunks::<16>().0) {
            *v = Xmm(*slot);
        }
    }

    fn take_x87(&mut self, image: &Image, wide: bool) {
        self.x87.fxrstor(image, wide);
        // Selectors are not kept.
        (self.x87.cs, self.x87.ds) = (0, 0);
    }

    /// Which components are not in their initial state. MXCSR does not count.
    pub(crate) fn in_use(&self) -> u64 {
        let sse = self.xmm.iter().take(self.xmm_count()).any(|v| v.0 != [0; 16]);
        let x87 = self.x87 != X87::default();
        let pkru = self.pkru != 0;
        (u64::from(x87) * X87_STATE) | (u64::from(sse) * SSE_STATE) | (u64::from(pkru) * PKRU_STATE)
    }

    /// The image that FXSAVE64 writes in 64-bit mode.
    pub fn fxsave_image(&self) -> [u8; 512] {
        let mut image = [0; LEGACY];
        self.x87.fxsave(&mut image, true);
        self.put_mxcsr(&mut image);
        self.put_xmm(&mut image);
        image
    }

    /// Loads x87 and SSE state from an image as [`Cpu::fxsave_image`] gives it.
    ///
    /// # Errors
    /// MXCSR has reserved bits set. Nothing was loaded then.
    pub fn load_fxsave_image(&mut self, image: &[u8; 512]) -> Result<(), ImageError> {
        let mxcsr = mxcsr_in(image)?;
        self.take_x87(image, true);
        self.mxcsr = mxcsr;
        self.take_xmm(image, 16);
        Ok(())
    }

    /// The image that XSAVE64 of all components writes, in standard format: what `KVM_GET_XSAVE` gives.
    pub fn xsave_image(&self) -> [u8; 4096] {
        let mut image = [0; 4096];
        image[..LEGACY].copy_from_slice(&self.fxsave_image());
        image[LEGACY..LEGACY + 8].copy_from_slice(&self.model.xcr0_bits().to_le_bytes());
        if self.model.xcr0_bits() & PKRU_STATE != 0 {
            image[PKRU_AT..PKRU_AT + 4].copy_from_slice(&self.pkru.to_le_bytes());
        }
        image
    }

    /// Loads an image as [`Cpu::xsave_image`] gives it. Components that the header says are in their
    /// initial state become so. What a processor with more components than the model has saved beside them
    /// is an error unless it is in its initial state.
    ///
    /// # Errors
    /// XRSTOR64 would raise #GP. Nothing was loaded then.
    pub fn load_xsave_image(&mut self, image: &[u8; 4096]) -> Result<(), ImageError> {
        let (legacy, rest) = image.split_first_chunk::<LEGACY>().ok_or(ImageError::Header(0, 0))?;
        let header = rest.first_chunk::<HEADER>().ok_or(ImageError::Header(0, 0))?;
        let all = self.model.xcr0_bits();
        let header = Header::parse(header, all)?;
        let at = header.pkru_at();
        let pkru = image.get(at..).map_or(0, |rest| word(rest, 0)) as u32;
        self.restore_components((legacy, pkru), header, all, true, 16)
    }

    /// What XRSTOR does with the components `wanted`, once the header is known to be good.
    fn restore_components(
        &mut self,
        (image, pkru): (&Image, u32),
        header: Header,
        wanted: u64,
        wide: bool,
        xmm_count: usize,
    ) -> Result<(), ImageError> {
        if wanted & SSE_STATE != 0 {
            // The standard format has MXCSR whether the registers are in their initial state or not.
            let stored = !header.compacted() || header.xstate_bv & SSE_STATE != 0;
            self.mxcsr = if stored { mxcsr_in(image)? } else { Mxcsr::new(MXCSR_INITIAL) };
            if header.xstate_bv & SSE_STATE != 0 {
                self.take_xmm(image, xmm_count);
            } else {
                self.take_xmm(&[0; LEGACY], xmm_count);
            }
        }
        if wanted & X87_STATE != 0 {
            if header.xstate_bv & X87_STATE != 0 {
                self.take_x87(image, wide);
            } else {
                self.x87 = X87::default();
            }
        }
        if wanted & PKRU_STATE != 0 {
            self.set_pkru(if header.xstate_bv & PKRU_STATE != 0 { pkru } else { 0 });
        }
        Ok(())
    }

    /// The address of an image, aligned to `align` bytes.
    fn aligned_image(&mut self, op: &Op, size: usize, align: u64, kind: Kind) -> Result<u64, Stop> {
        let lin = self.image_ea(op, size, kind)?;
        if lin & (align - 1) == 0 { Ok(lin) } else { Err(self.gp(0)) }
    }

    /// The components that an instruction of the XSAVE family asks for and that are enabled.
    fn requested(&mut self) -> Result<u64, Stop> {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        let mask = u64::from(u32::get(self, reg::RAX)) | u64::from(u32::get(self, reg::RDX)) << 32;
        Ok(mask & self.xcr0)
    }

    /// Writes the components `which` of the legacy region, MXCSR if `mxcsr`.
    fn store_components(&mut self, lin: u64, which: u64, mxcsr: bool, wide: bool) -> Result<(), Stop> {
        let mut image = [0; LEGACY];
        if which & X87_STATE != 0 {
            self.x87.fxsave(&mut image, wide);
            self.write_image(lin, &image[..MXCSR_AT])?;
            self.write_image(lin.wrapping_add(32), &image[32..XMM_AT])?;
        }
        if mxcsr {
            self.put_mxcsr(&mut image);
            self.write_image(lin.wrapping_add(MXCSR_AT as u64), &image[MXCSR_AT..32])?;
        }
        if which & SSE_STATE != 0 {
            self.put_xmm(&mut image);
            let end = XMM_AT + 16 * self.xmm_count();
            self.write_image(lin.wrapping_add(XMM_AT as u64), &image[XMM_AT..end])?;
        }
        Ok(())
    }
}

/// FXSAVE and FXRSTOR can be used unless CR0.EM or CR0.TS is set.
fn usable(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr0 & (cr0::EM | cr0::TS) == 0 { Ok(()) } else { Err(cpu.raise(vector::NM, None)) }
}

fn fxsave_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    usable(cpu)?;
    let lin = cpu.aligned_image(op, LEGACY, 16, Kind::Write)?;
    cpu.probe_write(lin, LEGACY as u64)?;
    let sse = if cpu.cr4 & cr4::OSFXSR != 0 { SSE_STATE } else { 0 };
    cpu.store_components(lin, X87_STATE | sse, true, op.aux & WIDE != 0)
}
handler!(next: fxsave_work => fxsave);

fn fxrstor_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    usable(cpu)?;
    let lin = cpu.aligned_image(op, LEGACY, 16, Kind::Read)?;
    let mut image = [0; LEGACY];
    cpu.read_image(lin, &mut image[..XMM_AT + 256])?;
    if cpu.cr4 & cr4::OSFXSR != 0 {
        cpu.mxcsr = mxcsr_in(&image).map_err(|_| cpu.gp(0))?;
        cpu.take_xmm(&image, cpu.xmm_count());
    }
    cpu.take_x87(&image, op.aux & WIDE != 0);
    Ok(())
}
handler!(next: fxrstor_work => fxrstor);

/// XSAVE, and XSAVEOPT if what is in its initial state need not be written.
fn save_standard(cpu: &mut Cpu, op: &Op, optimised: bool) -> Result<(), Stop> {
    let wanted = cpu.requested()?;
    let lin = cpu.aligned_image(op, LEGACY + HEADER, 64, Kind::Write)?;
    cpu.probe_write(lin, (LEGACY + HEADER) as u64)?;
    let at = lin.wrapping_add(LEGACY as u64);
    let old: u64 = cpu.load(at)?;
    let in_use = cpu.in_use();
    let which = if optimised { wanted & in_use } else { wanted };
    if which & PKRU_STATE != 0 {
        cpu.store(lin.wrapping_add(PKRU_AT as u64), u64::from(cpu.pkru))?;
    }
    cpu.store_components(lin, which, wanted & SSE_STATE != 0, op.aux & WIDE != 0)?;
    cpu.store(at, old & !wanted | wanted & in_use)
}

fn xsave_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save_standard(cpu, op, false)
}
handler!(next: xsave_work => xsave);

fn xsaveopt_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    save_standard(cpu, op, true)
}
handler!(next: xsaveopt_work => xsaveopt);

fn save_compacted(cpu: &mut Cpu, op: &Op, wanted: u64) -> Result<(), Stop> {
    let lin = cpu.aligned_image(op, LEGACY + HEADER, 64, Kind::Write)?;
    cpu.probe_write(lin, (LEGACY + HEADER) as u64)?;
    // MXCSR has no place of its own here: it makes its component one in use.
    let mxcsr = if cpu.mxcsr.value() != MXCSR_INITIAL { SSE_STATE } else { 0 };
    let which = wanted & (cpu.in_use() | mxcsr);
    if which & PKRU_STATE != 0 {
        cpu.store(lin.wrapping_add((LEGACY + HEADER) as u64), u64::from(cpu.pkru))?;
    }
    cpu.store_components(lin, which, which & SSE_STATE != 0, op.aux & WIDE != 0)?;
    let at = lin.wrapping_add(LEGACY as u64);
    cpu.store(at, which)?;
    cpu.store(at.wrapping_add(8), COMPACTED | wanted)
}

fn xsavec_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let wanted = cpu.requested()?;
    save_compacted(cpu, op, wanted)
}
handler!(next: xsavec_work => xsavec);

/// The checks of XSAVES and XRSTORS, which are for privilege level 0. They exit for components that both
/// IA32_XSS and the XSS-exiting bitmap name; IA32_XSS is zero.
fn requested_as_supervisor(cpu: &mut Cpu) -> Result<u64, Stop> {
    if cpu.nonroot && !cpu.secondary(SecondaryControls::ENABLE_XSAVES) {
        return Err(cpu.ud());
    }
    let wanted = cpu.requested()?;
    cpu.need_cpl0()?;
    Ok(wanted)
}

fn xsaves_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let wanted = requested_as_supervisor(cpu)?;
    save_compacted(cpu, op, wanted)
}
handler!(next: xsaves_work => xsaves);

fn xrstor_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let wanted = cpu.requested()?;
    restore(cpu, op, wanted, false)
}
handler!(next: xrstor_work => xrstor);

fn xrstors_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let wanted = requested_as_supervisor(cpu)?;
    restore(cpu, op, wanted, true)
}
handler!(next: xrstors_work => xrstors);

/// XRSTOR, and XRSTORS, which takes the compacted format alone.
fn restore(cpu: &mut Cpu, op: &Op, wanted: u64, compacted: bool) -> Result<(), Stop> {
    let lin = cpu.aligned_image(op, LEGACY + HEADER, 64, Kind::Read)?;
    let mut header = [0; HEADER];
    cpu.read_image(lin.wrapping_add(LEGACY as u64), &mut header)?;
    let header = Header::parse(&header, cpu.xcr0).map_err(|_| cpu.gp(0))?;
    if compacted && !header.compacted() {
        return Err(cpu.gp(0));
    }
    let mut pkru = 0;
    if wanted & header.xstate_bv & PKRU_STATE != 0 {
        pkru = cpu.load(lin.wrapping_add(header.pkru_at() as u64))?;
    }
    let mut image = [0; LEGACY];
    cpu.read_image(lin, &mut image[..XMM_AT + 256])?;
    let (wide, count) = (op.aux & WIDE != 0, cpu.xmm_count());
    cpu.restore_components((&image, pkru), header, wanted, wide, count).map_err(|_| cpu.gp(0))
}
