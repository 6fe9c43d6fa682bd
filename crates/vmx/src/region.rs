//! A VMCS: the processor's working copy, and its form in memory (Intel SDM vol. 3, 25.2 and 25.11).
//!
//! # The region
//!
//! The format of VMCS data is the processor's own business; ours is, little-endian:
//!
//! | offset        | size | content                                                |
//! |---------------|------|--------------------------------------------------------|
//! | 0             | 4    | VMCS revision identifier; bit 31: shadow-VMCS indicator|
//! | 4             | 4    | VMX-abort indicator                                    |
//! | 8             | 4    | launch state: 0 clear, 1 launched                      |
//! | 12            | 4    | zero                                                   |
//! | 16 + 8 × slot | 8    | the field with this slot, zero-extended                |
//!
//! Everything after is left as it is. Slots follow the set of known fields, so a change of that set
//! changes [`Vmcs::REVISION`]. Software moves a VMCS to another processor with VMCLEAR here and VMPTRLD
//! there, which is [`Vmcs::store`] and [`Vmcs::load`].

use core::fmt;

use crate::caps::Capabilities;
use crate::controls::{
    EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, SecondaryExitControls,
    TertiaryControls, VmFunctions,
};
use crate::exit::{ExitReason, InterruptionInfo, VmInstructionError};
use crate::field::{Area, Field, Width};

/// Size of a VMCS region in bytes.
pub const REGION_SIZE: usize = 4096;

/// Bit 31 of the first word of a region: this is a shadow VMCS.
pub const SHADOW_INDICATOR: u32 = 1 << 31;

const DATA_OFFSET: usize = 16;
const _: () = assert!(DATA_OFFSET + 8 * Field::COUNT <= REGION_SIZE);

/// Whether VMLAUNCH or VMRESUME enters with a VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum LaunchState {
    /// After VMCLEAR: VMLAUNCH.
    Clear = 0,
    /// After VMLAUNCH: VMRESUME.
    Launched = 1,
}

/// A VMCS as the processor works on it.
///
/// Values are always within the width of their field.
#[derive(Clone, PartialEq, Eq)]
pub struct Vmcs {
    /// Revision identifier, bits 30:0 of the region's first word.
    pub revision: u32,
    /// Whether this is a shadow VMCS: bit 31 of the region's first word.
    pub shadow: bool,
    /// VMX-abort indicator.
    pub abort: u32,
    /// Launch state.
    pub launch_state: LaunchState,
    values: [u64; Field::COUNT],
}

impl Default for Vmcs {
    fn default() -> Self {
        Self::new()
    }
}

impl Vmcs {
    /// Revision identifier of the layout written here; bit 31 is 0.
    pub const REVISION: u32 = 0x5450_0000 | Field::COUNT as u32;

    /// A clear VMCS with every field zero and revision [`Vmcs::REVISION`].
    pub const fn new() -> Self {
        Vmcs {
            revision: Self::REVISION,
            shadow: false,
            abort: 0,
            launch_state: LaunchState::Clear,
            values: [0; Field::COUNT],
        }
    }

    /// Value of a field.
    #[inline(always)]
    pub const fn read(&self, field: Field) -> u64 {
        self.values[field as usize]
    }

    /// Value of a field, low 32 bits.
    #[inline(always)]
    pub const fn read32(&self, field: Field) -> u32 {
        self.values[field as usize] as u32
    }

    /// Sets a field to the bits of `value` that fit its width.
    #[inline(always)]
    pub const fn write(&mut self, field: Field, value: u64) {
        self.values[field as usize] = value & field.width().mask();
    }

    /// VMREAD: the value the encoding names, zero-extended.
    ///
    /// Fails with error 12 where the processor with these capabilities has no such component.
    pub fn vmread(&self, encoding: u64, caps: &Capabilities) -> Result<u64, VmInstructionError> {
        let (field, high) = component(encoding, caps)?;
        let value = self.read(field);
        Ok(if high { value >> 32 } else { value })
    }

    /// VMWRITE: sets what the encoding names to the bits of `value` that fit.
    ///
    /// Fails with error 12 where the processor has no such component, with error 13 where it is
    /// read-only and IA32_VMX_MISC\[29\] is 0.
    pub fn vmwrite(
        &mut self,
        encoding: u64,
        value: u64,
        caps: &Capabilities,
    ) -> Result<(), VmInstructionError> {
        let (field, high) = component(encoding, caps)?;
        if field.is_read_only() && !caps.vmwrite_any_field() {
            return Err(VmInstructionError::VmwriteReadOnly);
        }
        if high {
            self.write(field, self.read(field) & 0xffff_ffff | value << 32);
        } else {
            self.write(field, value);
        }
        Ok(())
    }

    /// The first word of the region in memory.
    pub const fn first_word(&self) -> u32 {
        self.revision & !SHADOW_INDICATOR | if self.shadow { SHADOW_INDICATOR } else { 0 }
    }

    /// Reads a region, as VMPTRLD does. Any content is taken: values are cut to the width of their
    /// field, and a launch state other than 1 is clear. Whether the revision is the processor's own is the
    /// caller's to compare.
    pub fn load(region: &[u8; REGION_SIZE]) -> Self {
        let mut vmcs = Vmcs::new();
        let (words, _) = region.as_chunks::<4>();
        let word = |n: usize| words.get(n).map_or(0, |bytes| u32::from_le_bytes(*bytes));
        vmcs.revision = word(0) & !SHADOW_INDICATOR;
        vmcs.shadow = word(0) & SHADOW_INDICATOR != 0;
        vmcs.abort = word(1);
        vmcs.launch_state = if word(2) == 1 { LaunchState::Launched } else { LaunchState::Clear };
        let (data, _) = region[DATA_OFFSET..].as_chunks::<8>();
        for (field, bytes) in Field::all().zip(data) {
            vmcs.write(field, u64::from_le_bytes(*bytes));
        }
        vmcs
    }

    /// Writes the region, as VMCLEAR does (which first sets [`Vmcs::launch_state`] to clear).
    pub fn store(&self, region: &mut [u8; REGION_SIZE]) {
        let header = [self.first_word(), self.abort, self.launch_state as u32, 0];
        let (words, _) = region.as_chunks_mut::<4>();
        for (to, word) in words.iter_mut().zip(header) {
            *to = word.to_le_bytes();
        }
        let (data, _) = region[DATA_OFFSET..].as_chunks_mut::<8>();
        for (to, value) in data.iter_mut().zip(self.values) {
            *to = value.to_le_bytes();
        }
    }

    /// Pin-based VM-execution controls.
    #[inline]
    pub fn pin_controls(&self) -> PinControls {
        PinControls::from_bits_retain(self.read32(Field::PinControls))
    }

    /// Primary processor-based VM-execution controls.
    #[inline]
    pub fn primary_controls(&self) -> PrimaryControls {
        PrimaryControls::from_bits_retain(self.read32(Field::PrimaryControls))
    }

    /// Secondary processor-based VM-execution controls in effect: none where they are not activated.
    #[inline]
    pub fn secondary_controls(&self) -> SecondaryControls {
        if self.primary_controls().contains(PrimaryControls::SECONDARY_CONTROLS) {
            SecondaryControls::from_bits_retain(self.read32(Field::SecondaryControls))
        } else {
            SecondaryControls::empty()
        }
    }

    /// Tertiary processor-based VM-execution controls in effect: none where they are not activated.
    #[inline]
    pub fn tertiary_controls(&self) -> TertiaryControls {
        if self.primary_controls().contains(PrimaryControls::TERTIARY_CONTROLS) {
            TertiaryControls::from_bits_retain(self.read(Field::TertiaryControls))
        } else {
            TertiaryControls::empty()
        }
    }

    /// Primary VM-exit controls.
    #[inline]
    pub fn exit_controls(&self) -> ExitControls {
        ExitControls::from_bits_retain(self.read32(Field::ExitControls))
    }

    /// Secondary VM-exit controls in effect: none where they are not activated.
    #[inline]
    pub fn secondary_exit_controls(&self) -> SecondaryExitControls {
        if self.exit_controls().contains(ExitControls::SECONDARY_CONTROLS) {
            SecondaryExitControls::from_bits_retain(self.read(Field::SecondaryExitControls))
        } else {
            SecondaryExitControls::empty()
        }
    }

    /// VM-entry controls.
    #[inline]
    pub fn entry_controls(&self) -> EntryControls {
        EntryControls::from_bits_retain(self.read32(Field::EntryControls))
    }

    /// VM functions in effect: none where "enable VM functions" is 0.
    #[inline]
    pub fn vm_functions(&self) -> VmFunctions {
        if self.secondary_controls().contains(SecondaryControls::ENABLE_VM_FUNCTIONS) {
            VmFunctions::from_bits_retain(self.read(Field::VmFunctionControls))
        } else {
            VmFunctions::empty()
        }
    }

    /// The exit reason field.
    #[inline]
    pub fn exit_reason(&self) -> ExitReason {
        ExitReason::from_bits(self.read32(Field::ExitReason))
    }

    /// The VM-entry interruption-information field.
    #[inline]
    pub fn entry_interruption(&self) -> InterruptionInfo {
        InterruptionInfo::from_bits(self.read32(Field::EntryInterruptionInfo))
    }

    /// The VM-exit interruption-information field.
    #[inline]
    pub fn exit_interruption(&self) -> InterruptionInfo {
        InterruptionInfo::from_bits(self.read32(Field::ExitInterruptionInfo))
    }

    /// The IDT-vectoring information field.
    #[inline]
    pub fn idt_vectoring(&self) -> InterruptionInfo {
        InterruptionInfo::from_bits(self.read32(Field::IdtVectoringInfo))
    }
}

fn component(encoding: u64, caps: &Capabilities) -> Result<(Field, bool), VmInstructionError> {
    u32::try_from(encoding)
        .ok()
        .and_then(Field::from_encoding)
        .filter(|&(field, _)| caps.supports_field(field))
        .ok_or(VmInstructionError::UnsupportedComponent)
}

/// A table of all fields, grouped by area.
impl fmt::Display for Vmcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.shadow { "shadow VMCS" } else { "VMCS" };
        let state = match self.launch_state {
            LaunchState::Clear => "clear",
            LaunchState::Launched => "launched",
        };
        writeln!(f, "{kind}, revision {:#010x}, {state}, abort indicator {}", self.revision, self.abort)?;
        for area in Area::ALL {
            writeln!(f, "{}", area.name())?;
            for field in Field::all().filter(|field| field.area() == area) {
                let value = self.read(field);
                let digits = match field.width() {
                    Width::W16 => 4,
                    Width::W32 => 8,
                    Width::W64 | Width::Natural => 16,
                };
                write!(f, "  {:04x} {:<50} {value:0digits$x}", field.encoding(), field.name())?;
                match field {
                    Field::ExitReason => write!(f, "  {}", self.exit_reason())?,
                    Field::InstructionError if value != 0 => match VmInstructionError::from_u32(value as u32)
                    {
                        Some(error) => write!(f, "  {error}")?,
                        None => write!(f, "  unknown error")?,
                    },
                    Field::EntryInterruptionInfo | Field::ExitInterruptionInfo | Field::IdtVectoringInfo => {
                        write!(f, "  {}", InterruptionInfo::from_bits(value as u32))?;
                    }
                    _ => {}
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Vmcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    extern crate alloc;
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;
    use crate::controls::SecondaryControls;

    fn caps() -> Capabilities {
        Capabilities::software()
    }

    #[test]
    fn a_region_migrates_through_memory() {
        let mut vmcs = Vmcs::new();
        for field in Field::all() {
            vmcs.write(field, 0x0123_4567_89ab_cdef_u64.rotate_left(field.slot() as u32));
        }
        vmcs.launch_state = LaunchState::Launched;
        vmcs.abort = 4;
        vmcs.shadow = true;
        let mut region = [0xaa; REGION_SIZE];
        vmcs.store(&mut region);
        assert_eq!(region[..4], (Vmcs::REVISION | SHADOW_INDICATOR).to_le_bytes());
        assert_eq!(region[4..8], [4, 0, 0, 0]);
        assert_eq!(region[REGION_SIZE - 1], 0xaa);
        assert!(Vmcs::load(&region) == vmcs);
    }

    #[test]
    fn writes_are_cut_to_the_width() {
        let mut vmcs = Vmcs::new();
        for (field, expected) in [
            (Field::Vpid, 0xffff),
            (Field::ExceptionBitmap, 0xffff_ffff),
            (Field::EptPointer, u64::MAX),
            (Field::GuestRip, u64::MAX),
        ] {
            vmcs.write(field, u64::MAX);
            assert_eq!(vmcs.read(field), expected);
        }
    }

    #[test]
    fn high_access_reaches_bits_63_32() {
        let mut vmcs = Vmcs::new();
        let full = Field::TscOffset.encoding().into();
        vmcs.vmwrite(full, 0x1111_2222_3333_4444, &caps()).unwrap();
        vmcs.vmwrite(full | 1, 0xdead_beef_5555_6666, &caps()).unwrap();
        assert_eq!(vmcs.vmread(full, &caps()), Ok(0x5555_6666_3333_4444));
        assert_eq!(vmcs.vmread(full | 1, &caps()), Ok(0x5555_6666));
    }

    #[test]
    fn vmwrite_of_exit_information_needs_the_capability() {
        let mut vmcs = Vmcs::new();
        let reason = Field::ExitReason.encoding().into();
        let strict = caps().without_vmwrite_any_field();
        assert_eq!(vmcs.vmwrite(reason, 1, &strict), Err(VmInstructionError::VmwriteReadOnly));
        assert_eq!(vmcs.vmwrite(reason, 1, &caps()), Ok(()));
        assert_eq!(vmcs.vmread(reason, &strict), Ok(1));
    }

    #[test]
    fn unsupported_components_give_error_12() {
        let mut vmcs = Vmcs::new();
        let no_ept = caps().without_secondary(SecondaryControls::ENABLE_EPT);
        for (encoding, caps) in [
            (0x681f, &caps()),
            (0x1_0000_681e, &caps()),
            (0x7000, &caps()),
            (Field::EptPointer.encoding().into(), &no_ept),
        ] {
            assert_eq!(vmcs.vmread(encoding, caps), Err(VmInstructionError::UnsupportedComponent));
            assert_eq!(vmcs.vmwrite(encoding, 0, caps), Err(VmInstructionError::UnsupportedComponent));
        }
    }

    #[test]
    fn the_dump_names_every_field() {
        let mut vmcs = Vmcs::new();
        vmcs.write(Field::GuestRip, 0xfff0);
        let dump = vmcs.to_string();
        for field in Field::all() {
            assert!(dump.contains(field.name()), "{field}");
        }
        assert!(dump.lines().any(|l| l.contains("guest RIP") && l.ends_with("000000000000fff0")), "{dump}");
    }

    proptest! {
        #[test]
        fn any_region_loads_and_prints(bytes in proptest::collection::vec(any::<u8>(), REGION_SIZE)) {
            let region: [u8; REGION_SIZE] = bytes.try_into().unwrap();
            let vmcs = Vmcs::load(&region);
            for field in Field::all() {
                prop_assert_eq!(vmcs.read(field) & !field.width().mask(), 0);
            }
            prop_assert!(!vmcs.to_string().is_empty());
            let mut stored = [0; REGION_SIZE];
            vmcs.store(&mut stored);
            prop_assert!(Vmcs::load(&stored) == vmcs);
        }

        #[test]
        fn any_encoding_reads_what_was_written(encoding in any::<u64>(), low in 0u64..0x8000, value: u64) {
            for encoding in [encoding, low] {
                let mut vmcs = Vmcs::new();
                if vmcs.vmwrite(encoding, value, &caps()).is_ok() {
                    let (field, high) = Field::from_encoding(encoding as u32).unwrap();
                    let mask = if high { 0xffff_ffff } else { field.width().mask() };
                    prop_assert_eq!(vmcs.vmread(encoding, &caps()), Ok(value & mask));
                }
            }
        }
    }
}
