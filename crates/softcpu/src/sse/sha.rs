//! SHA extensions (FIPS 180-4). Working variables are packed from the top lane down, as the SDM draws
//! them: A in bits 127:96.

use super::{Op2, Op2Imm, Op3, Xmm};

/// Four rounds of SHA-1; the immediate chooses function and constant.
#[derive(Clone, Copy, Debug)]
pub struct Sha1rnds4;

impl Op2Imm<Xmm> for Sha1rnds4 {
    #[inline]
    fn op(dst: Xmm, src: Xmm, imm: u8) -> Xmm {
        let [mut d, mut c, mut b, mut a] = dst.u32s();
        let w = src.u32s();
        let (function, constant): (fn(u32, u32, u32) -> u32, u32) = match imm & 3 {
            0 => (choose, 0x5a82_7999),
            1 => (|b, c, d| b ^ c ^ d, 0x6ed9_eba1),
            2 => (majority, 0x8f1b_bcdc),
            _ => (|b, c, d| b ^ c ^ d, 0xca62_c1d6),
        };
        // E is already in the first word (SHA1NEXTE put it there); after each round it is the old D.
        let mut e = 0u32;
        for i in (0..4).rev() {
            let next = function(b, c, d)
                .wrapping_add(a.rotate_left(5))
                .wrapping_add(w[i])
                .wrapping_add(e)
                .wrapping_add(constant);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        Xmm::from([d, c, b, a])
    }
}

/// The next E, added to the top word of the message.
#[derive(Clone, Copy, Debug)]
pub struct Sha1nexte;

impl Op2<Xmm> for Sha1nexte {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        let mut s = src.u32s();
        s[3] = s[3].wrapping_add(dst.u32s()[3].rotate_left(30));
        Xmm::from(s)
    }
}

/// First half of the SHA-1 message schedule.
#[derive(Clone, Copy, Debug)]
pub struct Sha1msg1;

impl Op2<Xmm> for Sha1msg1 {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        let ([w3, w2, w1, w0], [_, _, w5, w4]) = (dst.u32s(), src.u32s());
        Xmm::from([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
    }
}

/// Second half of the SHA-1 message schedule.
#[derive(Clone, Copy, Debug)]
pub struct Sha1msg2;

impl Op2<Xmm> for Sha1msg2 {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        let ([d0, d1, d2, d3], [w15, w14, w13, _]) = (dst.u32s(), src.u32s());
        let w16 = (d3 ^ w13).rotate_left(1);
        Xmm::from([(d0 ^ w16).rotate_left(1), (d1 ^ w15).rotate_left(1), (d2 ^ w14).rotate_left(1), w16])
    }
}

/// Two rounds of SHA-256: C, D, G, H in the destination, A, B, E, F in the source, message and constants
/// in XMM0.
#[derive(Clone, Copy, Debug)]
pub struct Sha256rnds2;

impl Op3 for Sha256rnds2 {
    #[inline]
    fn op(dst: Xmm, src: Xmm, xmm0: Xmm) -> Xmm {
        let ([mut h, mut g, mut d, mut c], [mut f, mut e, mut b, mut a]) = (dst.u32s(), src.u32s());
        let wk = xmm0.u32s();
        for wk in &wk[..2] {
            let t = h
                .wrapping_add(e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25))
                .wrapping_add(choose(e, f, g))
                .wrapping_add(*wk);
            let s =
                (a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22)).wrapping_add(majority(a, b, c));
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t), c, b, a, t.wrapping_add(s));
        }
        // What went in as A, B, E, F is now C, D, G, H: software swaps the two registers.
        let _ = (c, d, g, h);
        Xmm::from([f, e, b, a])
    }
}

/// First half of the SHA-256 message schedule.
#[derive(Clone, Copy, Debug)]
pub struct Sha256msg1;

impl Op2<Xmm> for Sha256msg1 {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        let ([w0, w1, w2, w3], w4) = (dst.u32s(), src.low32());
        let mix =
            |w: u32, next: u32| w.wrapping_add(next.rotate_right(7) ^ next.rotate_right(18) ^ next >> 3);
        Xmm::from([mix(w0, w1), mix(w1, w2), mix(w2, w3), mix(w3, w4)])
    }
}

/// Second half of the SHA-256 message schedule.
#[derive(Clone, Copy, Debug)]
pub struct Sha256msg2;

impl Op2<Xmm> for Sha256msg2 {
    #[inline]
    fn op(dst: Xmm, src: Xmm) -> Xmm {
        let ([d0, d1, d2, d3], [_, _, w14, w15]) = (dst.u32s(), src.u32s());
        let mix =
            |w: u32, from: u32| w.wrapping_add(from.rotate_right(17) ^ from.rotate_right(19) ^ from >> 10);
        let (w16, w17) = (mix(d0, w14), mix(d1, w15));
        Xmm::from([w16, w17, mix(d2, w16), mix(d3, w17)])
    }
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    (x & y) ^ (!x & z)
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    (x & y) ^ (x & z) ^ (y & z)
}
