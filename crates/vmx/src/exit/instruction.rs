//! VM-exit instruction information (Intel SDM vol. 3, 28.2.5, tables 28-8 to 28-16).

use bitfield_struct::bitfield;

use crate::state::Segment;

/// Address size of an instruction: bits 9:7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AddressSize {
    /// 16 bits.
    A16 = 0,
    /// 32 bits.
    A32 = 1,
    /// 64 bits.
    A64 = 2,
}

impl AddressSize {
    /// The bits an effective address of this size has.
    pub const fn mask(self) -> u64 {
        match self {
            AddressSize::A16 => 0xffff,
            AddressSize::A32 => 0xffff_ffff,
            AddressSize::A64 => u64::MAX,
        }
    }
}

/// Which of the instructions with reason "access to GDTR or IDTR" it was: bits 29:28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum DescriptorTableInstruction {
    /// SGDT.
    Sgdt = 0,
    /// SIDT.
    Sidt = 1,
    /// LGDT.
    Lgdt = 2,
    /// LIDT.
    Lidt = 3,
}

/// Which of the instructions with reason "access to LDTR or TR" it was: bits 29:28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SystemSegmentInstruction {
    /// SLDT.
    Sldt = 0,
    /// STR.
    Str = 1,
    /// LLDT.
    Lldt = 2,
    /// LTR.
    Ltr = 3,
}

/// The VM-exit instruction-information field.
///
/// Its formats agree wherever they have the same thing, so one structure serves all; what an instruction
/// has no use for is undefined.
///
/// | instruction                                          | has                                                   |
/// |------------------------------------------------------|-------------------------------------------------------|
/// | INS, OUTS                                            | address size, segment                                 |
/// | INVEPT, INVVPID, INVPCID                             | memory operand, `reg2`                                |
/// | SGDT, SIDT, LGDT, LIDT                               | memory operand, operand size, [`InstructionInfo::descriptor_table`] |
/// | SLDT, STR, LLDT, LTR                                 | memory operand or `reg1`, [`InstructionInfo::system_segment`] |
/// | RDRAND, RDSEED, TPAUSE, UMWAIT                       | `reg1`, operand size                                  |
/// | VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES    | memory operand                                        |
/// | VMREAD, VMWRITE                                      | memory operand or `reg1`, `reg2`: the encoding        |
/// | LOADIWKEY                                            | `reg1`, `reg2`                                        |
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InstructionInfo {
    /// Bits 1:0: the index is shifted left by this.
    #[bits(2)]
    pub scaling: u8,
    __: bool,
    /// Bits 6:3: general-purpose register that is the operand, where that is not in memory.
    #[bits(4)]
    pub reg1: u8,
    /// Bits 9:7: address size, [`AddressSize`].
    #[bits(3)]
    pub address_size_number: u8,
    /// Bit 10: the operand is a register, not memory.
    pub register_operand: bool,
    /// Bits 12:11: operand size, 0 for 16 bits, 1 for 32, 2 for 64.
    #[bits(2)]
    pub operand_size: u8,
    #[bits(2)]
    __: u8,
    /// Bits 17:15: segment register, ES to GS.
    #[bits(3)]
    pub segment_number: u8,
    /// Bits 21:18: index register.
    #[bits(4)]
    pub index_register: u8,
    /// Bit 22: there is no index register.
    pub index_invalid: bool,
    /// Bits 26:23: base register.
    #[bits(4)]
    pub base_register: u8,
    /// Bit 27: there is no base register.
    pub base_invalid: bool,
    /// Bits 31:28: second register operand; or, in bits 29:28, which instruction it was.
    #[bits(4)]
    pub reg2: u8,
}

/// Operand in memory, without its displacement: that is the exit qualification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryOperand {
    /// Segment register.
    pub segment: Segment,
    /// Number of the base register.
    pub base: Option<u8>,
    /// Number of the index register.
    pub index: Option<u8>,
    /// The index is shifted left by this.
    pub scaling: u8,
    /// Address size.
    pub address_size: AddressSize,
}

impl MemoryOperand {
    /// The effective address: offset in the segment. `register` reads a general-purpose register.
    pub fn effective_address(&self, displacement: u64, register: impl Fn(u8) -> u64) -> u64 {
        let base = self.base.map_or(0, &register);
        let index = self.index.map_or(0, &register);
        let scaled = index.wrapping_shl(self.scaling.into());
        base.wrapping_add(scaled).wrapping_add(displacement) & self.address_size.mask()
    }
}

impl InstructionInfo {
    /// Information about an operand in memory.
    pub const fn memory(operand: MemoryOperand) -> Self {
        let info = Self::new()
            .with_scaling(operand.scaling & 3)
            .with_address_size_number(operand.address_size as u8)
            .with_segment_number(operand.segment as u8 & 7)
            .with_index_invalid(operand.index.is_none())
            .with_base_invalid(operand.base.is_none());
        let info = match operand.index {
            Some(index) => info.with_index_register(index & 15),
            None => info,
        };
        match operand.base {
            Some(base) => info.with_base_register(base & 15),
            None => info,
        }
    }

    /// The address size, if it is not a reserved one.
    pub const fn address_size(self) -> Option<AddressSize> {
        Some(match self.address_size_number() {
            0 => AddressSize::A16,
            1 => AddressSize::A32,
            2 => AddressSize::A64,
            _ => return None,
        })
    }

    /// The segment register, if it is not a reserved number.
    pub const fn segment(self) -> Option<Segment> {
        Some(match self.segment_number() {
            0 => Segment::Es,
            1 => Segment::Cs,
            2 => Segment::Ss,
            3 => Segment::Ds,
            4 => Segment::Fs,
            5 => Segment::Gs,
            _ => return None,
        })
    }

    /// The operand in memory. `None` where it is a register, or where a number is reserved.
    pub fn memory_operand(self) -> Option<MemoryOperand> {
        if self.register_operand() {
            return None;
        }
        Some(MemoryOperand {
            segment: self.segment()?,
            base: (!self.base_invalid()).then(|| self.base_register()),
            index: (!self.index_invalid()).then(|| self.index_register()),
            scaling: self.scaling(),
            address_size: self.address_size()?,
        })
    }

    /// Which of SGDT, SIDT, LGDT, LIDT it was.
    pub const fn descriptor_table(self) -> DescriptorTableInstruction {
        match self.reg2() & 3 {
            0 => DescriptorTableInstruction::Sgdt,
            1 => DescriptorTableInstruction::Sidt,
            2 => DescriptorTableInstruction::Lgdt,
            _ => DescriptorTableInstruction::Lidt,
        }
    }

    /// For SGDT, SIDT, LGDT, LIDT: says which it was.
    pub const fn with_descriptor_table(self, instruction: DescriptorTableInstruction) -> Self {
        self.with_reg2(instruction as u8)
    }

    /// Which of SLDT, STR, LLDT, LTR it was.
    pub const fn system_segment(self) -> SystemSegmentInstruction {
        match self.reg2() & 3 {
            0 => SystemSegmentInstruction::Sldt,
            1 => SystemSegmentInstruction::Str,
            2 => SystemSegmentInstruction::Lldt,
            _ => SystemSegmentInstruction::Ltr,
        }
    }

    /// For SLDT, STR, LLDT, LTR: says which it was.
    pub const fn with_system_segment(self, instruction: SystemSegmentInstruction) -> Self {
        self.with_reg2(instruction as u8)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn vmread_to_memory() {
        // vmread [rax + rcx * 8 + disp], rdx in 64-bit mode with DS.
        let operand = MemoryOperand {
            segment: Segment::Ds,
            base: Some(0),
            index: Some(1),
            scaling: 3,
            address_size: AddressSize::A64,
        };
        let info = InstructionInfo::memory(operand).with_reg2(2);
        assert_eq!(info.into_bits(), 2 << 28 | 1 << 18 | 3 << 15 | 2 << 7 | 3);
        assert_eq!(info.memory_operand(), Some(operand));
        let address = operand.effective_address(0x10, |n| [0x1000, 2][usize::from(n)]);
        assert_eq!(address, 0x1020);
        let short = MemoryOperand { address_size: AddressSize::A16, ..operand };
        assert_eq!(short.effective_address(0xffff_ffff_ffff_ffff, |_| 0), 0xffff);
    }

    #[test]
    fn identities() {
        let info = InstructionInfo::new().with_descriptor_table(DescriptorTableInstruction::Lgdt);
        assert_eq!(info.into_bits(), 2 << 28);
        let info = InstructionInfo::new().with_system_segment(SystemSegmentInstruction::Ltr);
        assert_eq!(info.system_segment(), SystemSegmentInstruction::Ltr);
        let register = InstructionInfo::new().with_register_operand(true).with_reg1(7);
        assert_eq!(register.into_bits(), 1 << 10 | 7 << 3);
        assert_eq!(register.memory_operand(), None);
    }

    proptest! {
        #[test]
        fn any_bits_decode(bits: u32) {
            let info = InstructionInfo::from_bits(bits);
            prop_assert_eq!(info.into_bits(), bits);
            if let Some(operand) = info.memory_operand() {
                prop_assert_eq!(InstructionInfo::memory(operand).memory_operand(), Some(operand));
                let address = operand.effective_address(bits.into(), |n| u64::MAX << n);
                prop_assert_eq!(address & !operand.address_size.mask(), 0);
            }
            let _ = (info.descriptor_table(), info.system_segment());
        }
    }
}
