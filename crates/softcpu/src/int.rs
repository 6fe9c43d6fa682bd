//! Operand widths.

use crate::cpu::Cpu;

/// Encodes AH, CH, DH or BH as an operand: the register number of its parent with this bit set.
pub const HIGH_BYTE: u8 = 0x40;

/// An integer operand of 8, 16, 32 or 64 bits, and how a register of that width is read and written.
pub trait Int: Copy + Eq + Ord + Default + Send + Sync + 'static {
    /// Width in bits.
    const BITS: u32;
    /// Width in bytes.
    const BYTES: usize;
    /// The most significant bit.
    const SIGN: u64 = 1 << (Self::BITS - 1);
    /// All-ones of this width.
    const MASK: u64 = u64::MAX >> (64 - Self::BITS);
    /// Truncates.
    fn of(v: u64) -> Self;
    /// Zero-extends.
    fn zx(self) -> u64;
    /// Sign-extends.
    fn sx(self) -> u64;
    /// Reads register operand `r`.
    fn get(cpu: &Cpu, r: u8) -> Self;
    /// Writes register operand `r`: 32-bit writes clear the upper half, narrower ones keep the rest.
    fn put(self, cpu: &mut Cpu, r: u8);
}

macro_rules! int {
    ($t:ty, $s:ty, |$old:ident, $new:ident| $merge:expr) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const BYTES: usize = size_of::<$t>();
            #[inline(always)]
            fn of(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn zx(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sx(self) -> u64 {
                self as $s as i64 as u64
            }
            #[inline(always)]
            fn get(cpu: &Cpu, r: u8) -> Self {
                cpu.regs[usize::from(r & 31)] as $t
            }
            #[inline(always)]
            fn put(self, cpu: &mut Cpu, r: u8) {
                let slot = &mut cpu.regs[usize::from(r & 31)];
                let ($old, $new) = (*slot, self as u64);
                *slot = $merge;
            }
        }
    };
}

int!(u16, i16, |old, new| old & !0xffff | new);
int!(u32, i32, |_old, new| new);
int!(u64, i64, |_old, new| new);

impl Int for u8 {
    const BITS: u32 = 8;
    const BYTES: usize = 1;
    #[inline(always)]
    fn of(v: u64) -> Self {
        v as u8
    }
    #[inline(always)]
    fn zx(self) -> u64 {
        u64::from(self)
    }
    #[inline(always)]
    fn sx(self) -> u64 {
        self as i8 as i64 as u64
    }
    #[inline(always)]
    fn get(cpu: &Cpu, r: u8) -> Self {
        (cpu.regs[usize::from(r & 31)] >> ((r & HIGH_BYTE) >> 3)) as u8
    }
    #[inline(always)]
    fn put(self, cpu: &mut Cpu, r: u8) {
        let shift = (r & HIGH_BYTE) >> 3;
        let slot = &mut cpu.regs[usize::from(r & 31)];
        *slot = *slot & !(0xff << shift) | u64::from(self) << shift;
    }
}
