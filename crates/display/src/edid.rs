//! What the monitor says of itself: an EDID 1.4 block (VESA E-EDID Release A, Revision 2).

/// A block of 128 bytes.
#[derive(Clone, Debug)]
pub(crate) struct Edid([u8; 128]);

/// Blank dots beside and blank lines below the picture: reduced blanking of VESA CVT 1.1.
const H_BLANK: u32 = 160;
const V_BLANK: u32 = 35;
/// Sync: dots and lines after the picture, and how long.
const H_FRONT: u32 = 48;
const H_SYNC: u32 = 32;
const V_FRONT: u32 = 3;
const V_SYNC: u32 = 6;
/// Frames a second.
const REFRESH: u32 = 60;
/// The picture's size: dots a centimetre, as on a monitor of 100 dots an inch.
const DOTS_A_CM: u32 = 39;

impl Edid {
    /// A monitor that asks for a resolution: a width of eights, from 640 by 480 to 4088 by 4088.
    pub fn new((width, height): (u16, u16)) -> Option<Self> {
        // Twelve bits are what the timing has room for; beyond that the clock does not fit.
        let fits = (640..=4088).contains(&width) && (480..=4088).contains(&height);
        let (width, height) = (fits && width % 8 == 0).then_some((u32::from(width), u32::from(height)))?;
        let mut block = Vec::with_capacity(128);
        block.extend([0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
        // Manufacturer "TRP", product 1, serial number 0, made in week 1 of 2026.
        let letter = |letter: u8| u16::from(letter - b'@');
        let maker = letter(b'T') << 10 | letter(b'R') << 5 | letter(b'P');
        block.extend(maker.to_be_bytes());
        block.extend([1, 0, 0, 0, 0, 0, 1, (2026 - 1990) as u8]);
        // Version 1.4; digital, 8 bits a colour; size in centimetres; gamma 2.2; RGB, sRGB, the first
        // timing is preferred.
        let cm = |dots: u32| u8::try_from(dots / DOTS_A_CM).unwrap_or(u8::MAX);
        block.extend([1, 4, 0xa0, cm(width), cm(height), 120, 0x06]);
        // The colours of sRGB.
        block.extend([0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
        // Established timings at 60 Hz: 640 by 480, 800 by 600, 1024 by 768, as far as they are smaller.
        let smaller = |w, h| u8::from(w <= width && h <= height);
        block.extend([0x20 | smaller(800, 600), smaller(1024, 768) << 3, 0]);
        // No standard timings.
        block.extend([1; 16]);
        block.extend(detailed(width, height));
        // The name, and two unused descriptors.
        block.extend([0, 0, 0, 0xfc, 0]);
        block.extend(b"Trapline\n    ");
        for _ in 0..2 {
            block.extend([0, 0, 0, 0x10, 0]);
            block.extend([0; 13]);
        }
        // No further blocks, and all bytes add up to zero.
        block.push(0);
        block.push(block.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte)));
        block.try_into().ok().map(Self)
    }

    /// A byte of the description; zero beyond its end.
    pub fn byte(&self, offset: u64) -> u8 {
        usize::try_from(offset).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0)
    }
}

/// A detailed timing (§3.10.2).
fn detailed(width: u32, height: u32) -> [u8; 18] {
    let clock = u64::from(width + H_BLANK) * u64::from(height + V_BLANK) * u64::from(REFRESH) / 10_000;
    // In units of 10 kHz; where it is beyond what fits, the refresh rate is lower.
    let [clock_low, clock_high] = u16::try_from(clock).unwrap_or(u16::MAX).to_le_bytes();
    let low = |value: u32| value as u8;
    let high = |one: u32, other: u32| (one >> 8 << 4 | other >> 8) as u8;
    let (mm_width, mm_height) = (width * 10 / DOTS_A_CM, height * 10 / DOTS_A_CM);
    [
        clock_low,
        clock_high,
        low(width),
        low(H_BLANK),
        high(width, H_BLANK),
        low(height),
        low(V_BLANK),
        high(height, V_BLANK),
        low(H_FRONT),
        low(H_SYNC),
        (V_FRONT << 4 | V_SYNC) as u8,
        0,
        low(mm_width),
        low(mm_height),
        high(mm_width, mm_height),
        0,
        0,
        // Digital separate sync, horizontal positive, vertical negative.
        0x1a,
    ]
}
