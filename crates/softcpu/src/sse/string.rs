//! SSE4.2 string comparison: PCMPISTRI, PCMPISTRM, PCMPESTRI, PCMPESTRM (SDM volume 1, section 12.10,
//! volume 2, section 4.1).

use super::{Lanes, Xmm};

/// What a string comparison gives: the mask for XMM0 or the index for ECX, and the flags it sets (AF and PF
/// are cleared).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringCompare {
    /// One bit an element: IntRes2 of the SDM.
    pub bits: u16,
    /// CF: some bit is set.
    pub carry: bool,
    /// ZF: the source's string ends within the register.
    pub zero: bool,
    /// SF: the destination's string ends within the register.
    pub sign: bool,
    /// OF: bit 0 is set.
    pub overflow: bool,
    imm: u8,
}

impl StringCompare {
    /// For ECX: the place of the first or last set bit, or the number of elements if there is none.
    pub fn index(&self) -> u32 {
        match (self.bits, self.imm & 0x40 != 0) {
            (0, _) => elements(self.imm) as u32,
            (bits, false) => bits.trailing_zeros(),
            (bits, true) => 15 - bits.leading_zeros(),
        }
    }

    /// For XMM0: the bits, zero-extended or expanded to whole elements.
    pub fn mask(&self) -> Xmm {
        let set = |i: usize| self.bits >> i & 1 != 0;
        match (self.imm & 0x40 != 0, self.imm & 1 != 0) {
            (false, _) => Xmm::from([u64::from(self.bits), 0]),
            (true, false) => Xmm::build(|i| if set(i) { !0u8 } else { 0 }),
            (true, true) => Xmm::build(|i| if set(i) { !0u16 } else { 0 }),
        }
    }
}

/// Compares strings that end at their first zero element.
pub fn pcmpistr(dst: Xmm, src: Xmm, imm: u8) -> StringCompare {
    let (a, b) = (widen(dst, imm), widen(src, imm));
    let length = |s: &[i32; 16]| s[..elements(imm)].iter().position(|&e| e == 0);
    let full = elements(imm);
    compare(&a, length(&a).unwrap_or(full), &b, length(&b).unwrap_or(full), imm)
}

/// Compares strings whose lengths are EAX's (the destination's) and EDX's, or with REX.W RAX's and RDX's,
/// sign-extended: absolute values, saturated to the number of elements.
pub fn pcmpestr(dst: Xmm, src: Xmm, imm: u8, rax: i64, rdx: i64) -> StringCompare {
    let length = |reg: i64| reg.unsigned_abs().min(elements(imm) as u64) as usize;
    compare(&widen(dst, imm), length(rax), &widen(src, imm), length(rdx), imm)
}

/// How many elements a register holds.
fn elements(imm: u8) -> usize {
    if imm & 1 != 0 { 8 } else { 16 }
}

/// The elements, as the immediate's source format says: bytes or words, unsigned or signed.
fn widen(reg: Xmm, imm: u8) -> [i32; 16] {
    let mut out = [0; 16];
    match imm & 3 {
        0 => out = reg.0.map(i32::from),
        2 => out = reg.0.map(|b| i32::from(b as i8)),
        format => {
            let words = <Xmm as Lanes<u16>>::lanes(reg);
            for (wide, word) in out.iter_mut().zip(words) {
                *wide = if format == 1 { i32::from(word) } else { i32::from(word as i16) };
            }
        }
    }
    out
}

/// `a` is the destination operand (the set, the ranges, or the needle), `b` the source.
fn compare(a: &[i32; 16], a_len: usize, b: &[i32; 16], b_len: usize, imm: u8) -> StringCompare {
    let n = elements(imm);
    let (needle, text) = (&a[..a_len], &b[..b_len]);
    let test = |i: usize| match imm >> 2 & 3 {
        // Equal any: the text's element is in the set.
        0 => i < b_len && needle.contains(&b[i]),
        // Ranges: in one of the whole pairs.
        1 => i < b_len && needle.chunks_exact(2).any(|r| r[0] <= b[i] && b[i] <= r[1]),
        // Equal each: beyond the ends of both strings counts as equal.
        2 => match (i < a_len, i < b_len) {
            (true, true) => a[i] == b[i],
            (a, b) => a == b,
        },
        // Equal ordered: the needle starts here; the register's end cuts it short, the text's does not.
        _ => {
            let fits = needle.len().min(n - i);
            text.get(i..i + fits).is_some_and(|part| part == &needle[..fits]) || fits == 0
        }
    };
    let result = (0..n).fold(0u16, |bits, i| bits | u16::from(test(i)) << i);
    let all = if n == 16 { 0xffff } else { 0xff };
    let valid = ((1u32 << b_len) - 1) as u16;
    let bits = match imm >> 4 & 3 {
        1 => result ^ all,
        3 => result ^ valid,
        _ => result,
    };
    StringCompare { bits, carry: bits != 0, zero: b_len < n, sign: a_len < n, overflow: bits & 1 != 0, imm }
}
