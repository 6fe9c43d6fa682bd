//! Scan codes, and the controller's translation of set 2 to set 1.

/// Prefix of the keys that came after the PC/AT's 84.
pub(super) const EXTENDED: u8 = 0xe0;
/// Prefix of a release in set 2.
pub(super) const BREAK: u8 = 0xf0;
/// Longest sequence of one key, in bytes: Pause in set 2.
pub(super) const MAX_SEQUENCE: usize = 8;

/// What the 8042 makes of the bytes 0x00 to 0x84; higher ones stay as they are.
const TO_SET1: [u8; 0x85] = [
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29,
    0x59, // 00
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03,
    0x5b, // 10
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06,
    0x5d, // 20
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09,
    0x5f, // 30
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c,
    0x61, // 40
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63,
    0x76, // 50
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f,
    0x6f, // 60
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46,
    0x54, // 70
    0x80, 0x81, 0x82, 0x41, 0x54, // 80: F7 and SysRq are beyond 0x7f
];

/// The other way: set 2 code of each set 1 code. Where two codes have the same translation, the later
/// one (F7, SysRq) is the key.
const TO_SET2: [u8; 0x80] = {
    let mut table = [0; 0x80];
    let mut code = 1;
    while code < TO_SET1.len() {
        if TO_SET1[code] < 0x80 {
            table[TO_SET1[code] as usize] = code as u8;
        }
        code += 1;
    }
    table
};

/// What a byte of set 2 becomes in set 1.
pub(super) fn translate(byte: u8) -> u8 {
    TO_SET1.get(usize::from(byte)).copied().unwrap_or(byte)
}

/// A key of the keyboard, named by its scan code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Set 1 make code, 1 to 0x7f.
    code: u8,
    extended: bool,
    pause: bool,
}

impl Key {
    /// Pause, which has a sequence of its own and no release.
    pub const PAUSE: Self = Self { code: 0x45, extended: false, pause: true };

    /// The key with the set 1 make code `code`: 0x01 to 0x7f, or 0xe001 to 0xe07f for those with the
    /// prefix 0xe0. These are the codes of QEMU's extended key events in VNC, too. `None` for others.
    pub const fn from_set1(code: u16) -> Option<Self> {
        let (extended, low) = (code >> 8 == EXTENDED as u16, code as u8);
        if (extended || code >> 8 == 0) && low != 0 && low < 0x80 {
            Some(Self { code: low, extended, pause: false })
        } else {
            None
        }
    }

    /// The bytes the keyboard sends in `set` (1, else 2) when the key goes down or up; how many count
    /// is the second part.
    pub(super) fn sequence(self, set: u8, pressed: bool) -> ([u8; MAX_SEQUENCE], usize) {
        let mut bytes = [0; MAX_SEQUENCE];
        let mut len = 0;
        let mut push = |byte| {
            if let Some(to) = bytes.get_mut(len) {
                *to = byte;
                len += 1;
            }
        };
        let code = if set == 1 { self.code } else { TO_SET2[usize::from(self.code % 0x80)] };
        match (self.pause, set) {
            (true, _) if !pressed => {}
            (true, 1) => [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5].into_iter().for_each(push),
            (true, _) => [0xe1, 0x14, 0x77, 0xe1, 0xf0, 0x14, 0xf0, 0x77].into_iter().for_each(push),
            (false, _) => {
                if self.extended {
                    push(EXTENDED);
                }
                if set != 1 && !pressed {
                    push(BREAK);
                }
                push(if set == 1 && !pressed { code | 0x80 } else { code });
            }
        }
        (bytes, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_set_1_code_has_one_set_2_code() {
        let mut set2: Vec<u8> = TO_SET2[1..].to_vec();
        for (code, &two) in (1u8..).zip(&set2) {
            assert_eq!(translate(two), code, "set 1 code {code:#x}");
        }
        set2.sort_unstable();
        set2.dedup();
        assert_eq!(set2.len(), 0x7f);
    }

    #[test]
    fn codes_of_well_known_keys() {
        for (set1, set2) in [(0x01, 0x76), (0x1e, 0x1c), (0x1c, 0x5a), (0x39, 0x29), (0x41, 0x83)] {
            let key = Key::from_set1(set1).unwrap();
            assert_eq!(key.sequence(2, true).0[0], set2);
        }
        assert_eq!(Key::from_set1(0), None);
        assert_eq!(Key::from_set1(0x80), None);
        assert_eq!(Key::from_set1(0xe100), None);
    }
}
