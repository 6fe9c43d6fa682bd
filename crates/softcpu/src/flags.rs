//! Lazy arithmetic flags.
//!
//! An operation leaves its result and the carries of its two top bits; a flag is worked out when
//! somebody asks. One representation serves every operation and width, so that no reader has to look
//! at which operation it was.

use crate::int::Int;

/// RFLAGS bits (SDM vol. 1 §3.4.3).
pub mod bits {
    /// Carry.
    pub const CF: u64 = 1;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Auxiliary carry.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap: single-step.
    pub const TF: u64 = 1 << 8;
    /// Interrupt enable.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual-8086 mode.
    pub const VM: u64 = 1 << 17;
    /// Alignment check, and access control for SMAP.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID can be used.
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every flag that exists beside the arithmetic ones.
    pub const SYSTEM: u64 = TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;
}

/// Bit 63 of `aux`: CF. Bit 62: CF xor OF. Bit 8: inverts SF. Bits 7–0: xored into the result's low byte
/// before its parity is taken.
const AUX_CF: u64 = 1 << 63;
const AUX_CARRY_IN: u64 = 1 << 62;
const AUX_SF: u64 = 1 << 8;

/// The arithmetic flags, lazily.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Flags {
    /// The last result, sign-extended: ZF, SF, PF.
    res: u64,
    /// Carries and corrections, see above.
    aux: u64,
    /// Operand bits: AF is bit 4 of this xor the result.
    adj: u64,
}

impl Flags {
    /// Where `res`, `aux` and `adj` lie, for host code.
    pub(crate) const RESULT: usize = std::mem::offset_of!(Self, res);
    pub(crate) const AUX: usize = std::mem::offset_of!(Self, aux);
    pub(crate) const ADJUST: usize = std::mem::offset_of!(Self, adj);

    /// After `r = a + b (+ carry)`.
    #[inline(always)]
    pub fn set_add<T: Int>(&mut self, a: T, b: T, r: T) {
        let (a, b, r) = (a.zx(), b.zx(), r.sx());
        let carries = (a & b) | ((a | b) & !r);
        self.res = r;
        self.aux = carries << (64 - T::BITS) & (3 << 62);
        self.adj = a ^ b;
    }

    /// After `r = a - b (- borrow)`.
    #[inline(always)]
    pub fn set_sub<T: Int>(&mut self, a: T, b: T, r: T) {
        let (a, b, r) = (a.zx(), b.zx(), r.sx());
        let borrows = (!a & b) | ((!a | b) & r);
        self.res = r;
        self.aux = borrows << (64 - T::BITS) & (3 << 62);
        self.adj = a ^ b;
    }

    /// After AND, OR, XOR, TEST: CF, OF and AF are clear.
    #[inline(always)]
    pub fn set_logic<T: Int>(&mut self, r: T) {
        self.res = r.sx();
        self.aux = 0;
        self.adj = r.sx();
    }

    /// After INC or DEC: CF stays.
    #[inline(always)]
    pub fn set_inc<T: Int>(&mut self, r: T) {
        let cf = self.aux & AUX_CF;
        // OF when the result is the most negative number; CF xor OF follows.
        let of = u64::from(r.zx() == T::SIGN) << 62;
        self.res = r.sx();
        self.aux = cf | ((cf >> 1) ^ of);
        self.adj = r.sx() ^ (u64::from(r.zx() & 15 == 0) << 4);
    }

    /// See [`Flags::set_inc`].
    #[inline(always)]
    pub fn set_dec<T: Int>(&mut self, r: T) {
        let cf = self.aux & AUX_CF;
        let of = u64::from(r.zx() == T::SIGN - 1) << 62;
        self.res = r.sx();
        self.aux = cf | ((cf >> 1) ^ of);
        self.adj = r.sx() ^ (u64::from(r.zx() & 15 == 15) << 4);
    }

    /// ZF, SF and PF from `r`; CF and OF as given; AF clear.
    #[inline(always)]
    pub fn set_result<T: Int>(&mut self, r: T, cf: bool, of: bool) {
        self.res = r.sx();
        self.aux = u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
        self.adj = r.sx();
    }

    /// Changes CF alone.
    #[inline(always)]
    pub fn set_cf(&mut self, cf: bool) {
        let of = self.of();
        self.aux = self.aux & !(3 << 62) | u64::from(cf) << 63 | u64::from(cf ^ of) << 62;
    }

    /// Changes ZF alone.
    #[inline]
    pub fn set_zf(&mut self, zf: bool) {
        let all = self.get() & !bits::ZF | if zf { bits::ZF } else { 0 };
        self.set(all);
    }

    /// Carry.
    #[inline(always)]
    pub fn cf(&self) -> bool {
        self.aux >> 63 != 0
    }

    /// Overflow.
    #[inline(always)]
    pub fn of(&self) -> bool {
        (self.aux ^ self.aux << 1) >> 63 != 0
    }

    /// Zero.
    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.res == 0
    }

    /// Sign.
    #[inline(always)]
    pub fn sf(&self) -> bool {
        (self.res >> 63 ^ self.aux >> 8 & 1) != 0
    }

    /// Parity.
    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.res ^ self.aux) as u8).count_ones() & 1 == 0
    }

    /// Auxiliary carry.
    #[inline(always)]
    pub fn af(&self) -> bool {
        (self.adj ^ self.res) & 0x10 != 0
    }

    /// The six flags at their places in RFLAGS.
    #[inline]
    pub fn get(&self) -> u64 {
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        flag(self.cf(), bits::CF)
            | flag(self.pf(), bits::PF)
            | flag(self.af(), bits::AF)
            | flag(self.zf(), bits::ZF)
            | flag(self.sf(), bits::SF)
            | flag(self.of(), bits::OF)
    }

    /// Takes all six flags from an RFLAGS image.
    #[inline]
    pub fn set(&mut self, image: u64) {
        let (cf, of) = (image & bits::CF != 0, image & bits::OF != 0);
        // A result that gives ZF; SF and PF are then corrected through `aux`.
        self.res = u64::from(image & bits::ZF == 0) << 9;
        let mut aux = (u64::from(cf) * AUX_CF) | (u64::from(cf ^ of) * AUX_CARRY_IN);
        if image & bits::SF != 0 {
            aux |= AUX_SF;
        }
        if image & bits::PF == 0 {
            aux |= 1;
        }
        self.aux = aux;
        self.adj = self.res ^ image & bits::AF;
    }

    /// Condition `cc` of Jcc, SETcc and CMOVcc (SDM vol. 1 appendix B).
    #[inline(always)]
    pub fn cond(&self, cc: u8) -> bool {
        let v = match cc >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() | self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() | (self.sf() != self.of()),
        };
        v ^ (cc & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_held() {
        for n in 0..64u64 {
            let image = (0..6).zip([bits::CF, bits::PF, bits::AF, bits::ZF, bits::SF, bits::OF]);
            let image = image.filter(|(i, _)| n >> i & 1 != 0).fold(0, |a, (_, b)| a | b);
            let mut f = Flags::default();
            f.set(image);
            assert_eq!(f.get(), image);
            f.set_cf(false);
            assert_eq!(f.get(), image & !bits::CF);
        }
    }

    #[test]
    fn additions_and_subtractions_of_bytes() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for c in 0..2u8 {
                    let mut f = Flags::default();
                    let r = a.wrapping_add(b).wrapping_add(c);
                    f.set_add(a, b, r);
                    let wide = u16::from(a) + u16::from(b) + u16::from(c);
                    let signed = i16::from(a as i8) + i16::from(b as i8) + i16::from(c);
                    assert_eq!(f.cf(), wide > 255);
                    assert_eq!(f.of(), !(-128..=127).contains(&signed));
                    assert_eq!(f.af(), (a & 15) + (b & 15) + c > 15);
                    assert_eq!((f.zf(), f.sf()), (r == 0, r > 127));

                    let r = a.wrapping_sub(b).wrapping_sub(c);
                    f.set_sub(a, b, r);
                    let signed = i16::from(a as i8) - i16::from(b as i8) - i16::from(c);
                    assert_eq!(f.cf(), u16::from(a) < u16::from(b) + u16::from(c));
                    assert_eq!(f.of(), !(-128..=127).contains(&signed));
                    assert_eq!(f.af(), (a & 15) < (b & 15) + c);
                }
            }
        }
    }

    #[test]
    fn increments_keep_carry() {
        for carry in [false, true] {
            let mut f = Flags::default();
            f.set_cf(carry);
            f.set_inc(0x80u8);
            assert!(f.of() && f.sf() && f.af() && f.cf() == carry);
            f.set_dec(0x7fu8);
            assert!(f.of() && !f.sf() && f.af() && f.cf() == carry);
            f.set_dec(0u8);
            assert!(!f.of() && f.zf() && !f.af() && f.cf() == carry);
        }
    }
}
