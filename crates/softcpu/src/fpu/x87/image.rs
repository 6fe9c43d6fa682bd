//! The images of FSTENV, FSAVE and FXSAVE (SDM volume 1, figures 8-9 to 8-12; volume 1, section
//! 10.5.1).

use super::X87;
use crate::fpu::f80::F80;

/// The layouts of FSTENV's image and of what FSAVE puts before the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnvForm {
    /// 14 bytes: protected mode, 16-bit operand size.
    Protected16,
    /// 28 bytes: protected and 64-bit mode, 32-bit operand size.
    Protected32,
    /// 14 bytes: real and virtual-8086 mode, 16-bit operand size.
    Real16,
    /// 28 bytes: real and virtual-8086 mode, 32-bit operand size.
    Real32,
}

impl EnvForm {
    /// Bytes of FSTENV's image. FSAVE's is 80 more.
    pub const fn size(self) -> usize {
        match self {
            Self::Protected16 | Self::Real16 => 14,
            Self::Protected32 | Self::Real32 => 28,
        }
    }

    /// Bytes a field takes.
    const fn width(self) -> usize {
        self.size() / 7
    }

    const fn is_real(self) -> bool {
        matches!(self, Self::Real16 | Self::Real32)
    }
}

impl X87 {
    /// The tag word, two bits a register.
    pub fn tag_word(&self) -> u16 {
        let registers = self.sign_exps.iter().zip(&self.significands).enumerate();
        registers.fold(0, |tags, (i, (&sign_exp, &significand))| {
            let x = F80::new(sign_exp, significand);
            let tag = match () {
                _ if self.full >> i & 1 == 0 => 3,
                _ if x.is_zero() => 1,
                _ if x.normal().is_none() => 2,
                _ => 0,
            };
            tags | tag << (2 * i)
        })
    }

    /// Loads the tag word: all that counts is which registers are empty.
    pub fn set_tag_word(&mut self, tags: u16) {
        self.full = (0..8).fold(0, |full, i| full | u8::from(tags >> (2 * i) & 3 != 3) << i);
    }

    /// FNSTENV's image, in the first [`EnvForm::size`] bytes. After writing it the caller must
    /// [`mask_all`](Self::mask_all).
    pub fn environment(&self, form: EnvForm) -> [u8; 28] {
        let (ip, dp) = (self.ip as u32, self.dp as u32);
        let opcode = u32::from(self.opcode & 0x7ff);
        let high = |address: u32| if form == EnvForm::Real16 { address >> 16 & 15 } else { address >> 16 };
        let pointers = match form {
            EnvForm::Protected16 => [ip, self.cs.into(), dp, self.ds.into()],
            EnvForm::Protected32 => {
                [ip, u32::from(self.cs) | opcode << 16, dp, u32::from(self.ds) | 0xffff_0000]
            }
            EnvForm::Real16 | EnvForm::Real32 => {
                [ip & 0xffff, high(ip) << 12 | opcode, dp & 0xffff, high(dp) << 12]
            }
        };
        let words = [self.control, self.status_word(), self.tag_word()].map(|w| u32::from(w) | 0xffff_0000);
        let mut image = [0; 28];
        let width = form.width();
        for (field, value) in image.chunks_exact_mut(width).zip(words.iter().chain(&pointers)) {
            field.copy_from_slice(&value.to_le_bytes()[..width]);
        }
        image
    }

    /// FLDENV from the first [`EnvForm::size`] bytes of `image`.
    pub fn set_environment(&mut self, image: &[u8; 28], form: EnvForm) {
        let mut fields = [0u32; 7];
        for (value, field) in fields.iter_mut().zip(image.chunks_exact(form.width())) {
            let mut bytes = [0; 4];
            bytes[..field.len()].copy_from_slice(field);
            *value = u32::from_le_bytes(bytes);
        }
        let [control, status, tags, ip, selector, dp, data_selector] = fields;
        self.set_control_word(control as u16);
        self.set_status_word(status as u16);
        self.set_tag_word(tags as u16);
        if form.is_real() {
            let join = |low: u32, high: u32| u64::from(low & 0xffff | high >> 12 << 16);
            (self.ip, self.cs, self.opcode) = (join(ip, selector), 0, selector as u16 & 0x7ff);
            (self.dp, self.ds) = (join(dp, data_selector), 0);
        } else {
            (self.ip, self.cs, self.opcode) = (ip.into(), selector as u16, (selector >> 16) as u16 & 0x7ff);
            (self.dp, self.ds) = (dp.into(), data_selector as u16);
        }
    }

    /// FNSAVE's image, in the first [`EnvForm::size`] + 80 bytes. After writing it the caller must
    /// [`fninit`](Self::fninit).
    pub fn save(&self, form: EnvForm) -> [u8; 108] {
        let mut image = [0; 108];
        image[..28].copy_from_slice(&self.environment(form));
        for (i, slot) in image[form.size()..].chunks_exact_mut(10).take(8).enumerate() {
            slot.copy_from_slice(&self.st(i).to_bytes());
        }
        image
    }

    /// FRSTOR from the first [`EnvForm::size`] + 80 bytes of `image`.
    pub fn restore(&mut self, image: &[u8; 108], form: EnvForm) {
        let mut environment = [0; 28];
        environment.copy_from_slice(&image[..28]);
        self.set_environment(&environment, form);
        for (i, slot) in image[form.size()..].chunks_exact(10).take(8).enumerate() {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(slot);
            self.set_st_raw(i, F80::from_bytes(bytes));
        }
    }

    /// The x87 part of FXSAVE: bytes 0 to 23 and the low ten of each 16 from 32 to 159. `wide` is
    /// the layout with REX.W, which has 64-bit pointers and no selectors.
    pub fn fxsave(&self, image: &mut [u8; 512], wide: bool) {
        let pointer = |address: u64, selector: u16| {
            if wide { address } else { address & 0xffff_ffff | u64::from(selector) << 32 }
        };
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status_word().to_le_bytes());
        image[4..6].copy_from_slice(&[self.full, 0]);
        image[6..8].copy_from_slice(&(self.opcode & 0x7ff).to_le_bytes());
        image[8..16].copy_from_slice(&pointer(self.ip, self.cs).to_le_bytes());
        image[16..24].copy_from_slice(&pointer(self.dp, self.ds).to_le_bytes());
        for (i, slot) in image[32..160].chunks_exact_mut(16).enumerate() {
            slot[..10].copy_from_slice(&self.st(i).to_bytes());
            slot[10..].fill(0);
        }
    }

    /// The x87 part of FXRSTOR, from the bytes that [`fxsave`](Self::fxsave) writes.
    pub fn fxrstor(&mut self, image: &[u8; 512], wide: bool) {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let pointer = |at: usize| {
            let low = u64::from(word(at)) | u64::from(word(at + 2)) << 16;
            match wide {
                true => (low | u64::from(word(at + 4)) << 32 | u64::from(word(at + 6)) << 48, 0),
                false => (low, word(at + 4)),
            }
        };
        self.set_control_word(word(0));
        self.set_status_word(word(2));
        self.full = image[4];
        self.opcode = word(6) & 0x7ff;
        (self.ip, self.cs) = pointer(8);
        (self.dp, self.ds) = pointer(16);
        for (i, slot) in image[32..160].chunks_exact(16).enumerate() {
            let mut bytes = [0; 10];
            bytes.copy_from_slice(&slot[..10]);
            self.set_st_raw(i, F80::from_bytes(bytes));
        }
    }
}
