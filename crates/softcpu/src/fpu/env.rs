//! How an operation rounds and what it raises.

/// Exception flags, in the bit positions that MXCSR and the x87 status and control words share.
#[derive(Clone, Copy, Debug)]
pub struct Flags;

impl Flags {
    /// Invalid operation.
    pub const IE: u8 = 0x01;
    /// Denormal operand.
    pub const DE: u8 = 0x02;
    /// Division of a finite number by zero.
    pub const ZE: u8 = 0x04;
    /// Overflow.
    pub const OE: u8 = 0x08;
    /// Underflow.
    pub const UE: u8 = 0x10;
    /// Precision: the result was rounded.
    pub const PE: u8 = 0x20;
    /// All six.
    pub const ALL: u8 = 0x3f;
    /// Those found before anything is computed: they leave the destination alone when unmasked.
    pub const BEFORE: u8 = Self::IE | Self::DE | Self::ZE;
}

/// Rounding control (SDM volume 1, section 4.8.4), with its two-bit encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rounding {
    /// To nearest, ties to even.
    Nearest = 0,
    /// Towards minus infinity.
    Down = 1,
    /// Towards plus infinity.
    Up = 2,
    /// Towards zero.
    Zero = 3,
}

impl Rounding {
    /// Decodes the low two bits of `field`.
    #[inline]
    pub const fn from_bits(field: u32) -> Self {
        match field & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }
}

/// x87 precision control: the bits of significand that add, subtract, multiply, divide and square
/// root keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 24 bits.
    Single,
    /// 53 bits.
    Double,
    /// 64 bits.
    Extended,
}

impl Precision {
    /// Bits of significand.
    #[inline]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Single => 24,
            Self::Double => 53,
            Self::Extended => 64,
        }
    }
}

/// The environment of an operation: control in, flags out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Env {
    /// Rounding direction.
    pub rounding: Rounding,
    /// Significand bits kept by 80-bit arithmetic. Other formats ignore it.
    pub precision: Precision,
    /// Masked exceptions, as [`Flags`] bits. An unmasked overflow or underflow gives an 80-bit
    /// result with its exponent moved by 24,576 into range, and underflow is then raised for exact
    /// tiny results too.
    pub masks: u8,
    /// Exceptions raised, as [`Flags`] bits. Operations only add to it.
    pub flags: u8,
    /// The last result, if inexact, was rounded away from zero (what the x87 reports in C1).
    pub rounded_up: bool,
    /// Tiny results become zero (when underflow is masked).
    pub ftz: bool,
    /// Denormal operands count as zero and raise nothing.
    pub daz: bool,
}

impl Default for Env {
    /// Round to nearest with 64 bits, everything masked, nothing raised.
    fn default() -> Self {
        Self {
            rounding: Rounding::Nearest,
            precision: Precision::Extended,
            masks: Flags::ALL,
            flags: 0,
            rounded_up: false,
            ftz: false,
            daz: false,
        }
    }
}

impl Env {
    /// Adds `flags` to those raised.
    #[inline]
    pub fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Whether any of `flags` is masked.
    #[inline]
    pub const fn masked(&self, flags: u8) -> bool {
        self.masks & flags != 0
    }
}

/// The outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// First below second.
    Less,
    /// Equal; zeros are equal whatever their signs.
    Equal,
    /// First above second.
    Greater,
    /// One is a NaN (or an invalid 80-bit encoding).
    Unordered,
}

impl Compare {
    /// ZF (bit 6), PF (bit 2) and CF (bit 0) as FCOMI, COMISS and their kin set them.
    #[inline]
    pub const fn eflags(self) -> u32 {
        match self {
            Self::Greater => 0,
            Self::Less => 0x01,
            Self::Equal => 0x40,
            Self::Unordered => 0x45,
        }
    }
}
