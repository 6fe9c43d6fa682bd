//! FSTENV, FSAVE and FXSAVE images.

use std::arch::asm;

use super::random::Random;
use super::x87::{FORM, frame};
use crate::fpu::{EnvForm, F80, X87};

#[repr(C, align(16))]
struct Aligned<const N: usize>([u8; N]);

/// A state from FRSTOR's image through FXSAVE or FSAVE with 16-bit operand size, on the host.
fn host_images(image: &[u8; 108]) -> ([u8; 512], [u8; 108]) {
    let (mut fx, mut narrow) = (Aligned([0; 512]), Aligned([0; 108]));
    // SAFETY: the instructions write 512 and 94 bytes, and FNSAVE leaves the unit initialised.
    unsafe {
        asm!(
            "frstor [{image}]",
            "fxsave [{fx}]",
            ".byte 0x66",
            "fnsave [{narrow}]",
            image = in(reg) image.as_ptr(),
            fx = in(reg) fx.0.as_mut_ptr(),
            narrow = in(reg) narrow.0.as_mut_ptr(),
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    (fx.0, narrow.0)
}

#[test]
fn fxsave_and_16_bit_fsave_store_what_the_host_stores() {
    let mut r = Random::new(5);
    for _ in 0..20_000 {
        let image = frame(&mut r).image;
        let (host_fx, host_narrow) = host_images(&image);
        let mut x = X87::default();
        x.restore(&image, FORM);
        let mut fx = [0; 512];
        x.fxsave(&mut fx, true);
        assert_eq!(fx[..6], host_fx[..6]);
        assert_eq!(fx[32..160], host_fx[32..160]);
        let narrow = x.save(EnvForm::Protected16);
        assert_eq!((&narrow[..6], &narrow[14..94]), (&host_narrow[..6], &host_narrow[14..94]));
    }
}

/// A state with everything in it that an image can carry.
fn full(r: &mut Random) -> X87 {
    let mut x = X87::default();
    x.restore(&frame(r).image, FORM);
    (x.opcode, x.ip, x.cs, x.dp, x.ds) = (0x5d9, 0x12345, 0, 0xabcde, 0);
    x
}

#[test]
fn every_image_restores_the_state_it_was_saved_from() {
    let mut r = Random::new(6);
    for _ in 0..2000 {
        for form in [EnvForm::Protected32, EnvForm::Real16, EnvForm::Real32] {
            let x = full(&mut r);
            let mut expected = x.clone();
            if form == EnvForm::Protected32 {
                (expected.cs, expected.ds) = (0x10, 0x18);
            }
            let image = expected.save(form);
            let mut y = X87::default();
            y.restore(&image, form);
            assert_eq!(y, expected, "{form:?}");
        }
        for wide in [false, true] {
            let mut x = full(&mut r);
            (x.ip, x.cs) = if wide { (0xffff_8000_1234_5678, 0) } else { (0x1234_5678, 0x33) };
            let mut image = [0xaa; 512];
            x.fxsave(&mut image, wide);
            assert!(image[24..32].iter().all(|b| *b == 0xaa), "MXCSR is the caller's");
            let mut y = X87::default();
            y.fxrstor(&image, wide);
            assert_eq!(y, x);
        }
    }
}

#[test]
fn environment_layouts_are_those_of_the_manual() {
    let mut x = X87::default();
    (x.opcode, x.ip, x.cs, x.dp, x.ds) = (0x5d9, 0x0001_2345, 0x10, 0x000a_bcde, 0x18);
    x.fld_f80(F80::ONE.to_bytes());
    let image = x.environment(EnvForm::Protected32);
    let dwords: Vec<u32> =
        image.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(dwords, [0xffff_037f, 0xffff_3800, 0xffff_3fff, 0x12345, 0x05d9_0010, 0xabcde, 0xffff_0018]);
    let words = |form: EnvForm| -> Vec<u16> {
        x.environment(form)[..14].chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
    };
    assert_eq!(words(EnvForm::Protected16), [0x037f, 0x3800, 0x3fff, 0x2345, 0x10, 0xbcde, 0x18]);
    assert_eq!(words(EnvForm::Real16), [0x037f, 0x3800, 0x3fff, 0x2345, 0x15d9, 0xbcde, 0xa000]);
}

#[test]
fn fstenv_masks_and_fninit_empties() {
    let mut x = X87::default();
    x.set_control_word(0x340);
    x.fld_constant(crate::fpu::Constant::One);
    x.mask_all();
    assert_eq!(x.control_word(), 0x37f);
    x.fninit();
    assert_eq!((x.tag_word(), x.status_word(), x.control_word()), (0xffff, 0, 0x37f));
}
