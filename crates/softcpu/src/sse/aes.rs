//! AES-NI (FIPS 197): one round an instruction. The state is the register, column by column.

use super::{Lanes, Op2, Op2Imm, Xmm};

/// Multiplies by x in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1.
const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 }
}

/// The S-box: the inverse in the field, through an affine map.
const SBOX: [u8; 256] = {
    let mut table = [0; 256];
    // p runs through the powers of 3, q through those of its inverse: q is always the inverse of p.
    let (mut p, mut q) = (1u8, 1u8);
    loop {
        p ^= double(p);
        q ^= q << 1;
        q ^= q << 2;
        q ^= q << 4;
        if q & 0x80 != 0 {
            q ^= 0x09;
        }
        let mixed = q ^ q.rotate_left(1) ^ q.rotate_left(2) ^ q.rotate_left(3) ^ q.rotate_left(4);
        table[p as usize] = mixed ^ 0x63;
        if p == 1 {
            break;
        }
    }
    table[0] = 0x63;
    table
};

const INVERSE_SBOX: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// SubBytes and MixColumns of one byte in row 0, as the column it adds to. Row r's is rotated by r bytes.
const ROUND: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let s = SBOX[i];
        let d = double(s);
        table[i] = u32::from_le_bytes([d, s, s, s ^ d]);
        i += 1;
    }
    table
};

/// InvMixColumns of one byte in row 0.
const UNMIX: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let a = i as u8;
        let (a2, a4, a8) = (double(a), double(double(a)), double(double(double(a))));
        table[i] = u32::from_le_bytes([a8 ^ a4 ^ a2, a8 ^ a, a8 ^ a4 ^ a, a8 ^ a2 ^ a]);
        i += 1;
    }
    table
};

/// The byte that ShiftRows moves to `row` of `column`.
#[inline(always)]
fn shifted(state: &Xmm, column: usize, row: usize) -> usize {
    usize::from(state.0[4 * ((column + row) % 4) + row])
}

/// The byte that InvShiftRows moves to `row` of `column`.
#[inline(always)]
fn unshifted(state: &Xmm, column: usize, row: usize) -> usize {
    usize::from(state.0[4 * ((column + 4 - row) % 4) + row])
}

#[inline(always)]
fn column(table: &[u32; 256], byte: impl Fn(usize) -> usize) -> u32 {
    (0..4).fold(0, |sum, row| sum ^ table[byte(row)].rotate_left(8 * row as u32))
}

#[inline(always)]
fn unmix(state: Xmm) -> Xmm {
    Xmm::build(|c| column(&UNMIX, |row| usize::from(state.0[4 * c + row])))
}

#[inline(always)]
fn xor(a: Xmm, b: Xmm) -> Xmm {
    a.zip(b, |a: u64, b| a ^ b)
}

/// One round of encryption; the source is the round key.
#[derive(Clone, Copy, Debug)]
pub struct Aesenc;

impl Op2<Xmm> for Aesenc {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        xor(Xmm::build(|c| column(&ROUND, |row| shifted(&dst, c, row))), src)
    }
}

/// The last round of encryption: no MixColumns.
#[derive(Clone, Copy, Debug)]
pub struct Aesenclast;

impl Op2<Xmm> for Aesenclast {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        xor(Xmm::build(|i| SBOX[shifted(&dst, i / 4, i % 4)]), src)
    }
}

/// One round of decryption by the equivalent inverse cipher.
#[derive(Clone, Copy, Debug)]
pub struct Aesdec;

impl Op2<Xmm> for Aesdec {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        xor(unmix(Xmm::build(|i| INVERSE_SBOX[unshifted(&dst, i / 4, i % 4)])), src)
    }
}

/// The last round of decryption: no InvMixColumns.
#[derive(Clone, Copy, Debug)]
pub struct Aesdeclast;

impl Op2<Xmm> for Aesdeclast {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        xor(Xmm::build(|i| INVERSE_SBOX[unshifted(&dst, i / 4, i % 4)]), src)
    }
}

/// InvMixColumns of the source: makes a round key ready for [`Aesdec`].
#[derive(Clone, Copy, Debug)]
pub struct Aesimc;

impl Op2<Xmm> for Aesimc {
    #[inline]
    fn op(_dst: Xmm, src: Xmm) -> Xmm {
        unmix(src)
    }
}

/// SubWord and RotWord of the source's odd doublewords; the immediate is the round constant.
#[derive(Clone, Copy, Debug)]
pub struct Aeskeygenassist;

impl Op2Imm<Xmm> for Aeskeygenassist {
    #[inline]
    fn op(_dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let substitute = |x: u32| u32::from_le_bytes(x.to_le_bytes().map(|b| SBOX[usize::from(b)]));
        let rotated = |x: u32| x.rotate_right(8) ^ u32::from(imm);
        let s = src.u32s();
        let (one, three) = (substitute(s[1]), substitute(s[3]));
        Xmm::from([one, rotated(one), three, rotated(three)])
    }
}
