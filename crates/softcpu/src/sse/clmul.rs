//! PCLMULQDQ: multiplication of polynomials over GF(2).

use super::{Op2Imm, Xmm};

/// The carry-less product of a quadword of the destination and one of the source.
#[derive(Clone, Copy, Debug)]
pub struct Pclmulqdq;

impl Op2Imm<Xmm> for Pclmulqdq {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let a = dst.u64s()[usize::from(imm & 1)];
        let b = src.u64s()[usize::from(imm >> 4 & 1)];
        Xmm::from(multiply(a, b))
    }
}

/// Four bits of `b` at a time, by a table of the sixteen multiples of `a`.
fn multiply(a: u64, b: u64) -> u128 {
    let mut multiples = [0u128; 16];
    for i in 1..16 {
        multiples[i] = multiples[i / 2] << 1 ^ if i & 1 != 0 { u128::from(a) } else { 0 };
    }
    (0..16).rev().fold(0, |product, nibble| product << 4 ^ multiples[(b >> (4 * nibble)) as usize & 15])
}
