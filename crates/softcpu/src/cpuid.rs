//! CPU models: what CPUID says, and with it which instructions work.
//!
//! One table (`FEATURES`) ties a CPUID bit to the instructions behind it and to the smallest model that
//! has it, so that what is advertised and what works cannot come apart.
//!
//! The Intel flavour calls itself a Saltwell Atom: an in-order core that does not speculate. Operating
//! systems then leave out the mitigations of speculative execution, none of which this processor needs;
//! IA32_ARCH_CAPABILITIES says the same to whoever asks there.
//!
//! The feature `kvm` is none of the processor's: it says that a hypervisor may offer what KVM offers to its
//! guests. With it, the time-stamp counter is not called invariant, unless that is asked for behind it.

use iced_x86::{Code, CpuidFeature as F, EncodingKind, Instruction};

use crate::cpu::cr4;
use crate::ops::fxsave::{PKRU_AT, PKRU_BYTES, PKRU_STATE, SSE_STATE, X87_STATE};

/// Bytes of the largest cache, for leaf 4 and 0x80000006.
const L2_KIB: u32 = 1024;

/// Bit of CPUID.80000007H:EDX.
const INVARIANT_TSC: u8 = 8;

/// Bytes of the XSAVE area: legacy region and header.
const XSAVE_SIZE: u32 = 576;

/// Who the processor says has made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

/// A CPUID register with feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    L1Ecx,
    L1Edx,
    L7Ebx,
    L7Ecx,
    L7Edx,
    LDEax,
    X1Ecx,
    X1Edx,
    X7Edx,
    /// None of the processor's: what a hypervisor adds.
    Kvm,
}

const WORDS: usize = 10;

/// The smallest named model that has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    V1,
    V2,
    Default,
    Max,
}

struct Feature {
    name: &'static str,
    word: Word,
    bit: u8,
    level: Level,
    instructions: &'static [F],
}

macro_rules! features {
    ($($name:literal $word:ident $bit:literal $level:ident $([$($f:ident),*])?;)*) => {
        /// Every feature that can be switched.
        const FEATURES: &[Feature] = &[$(Feature {
            name: $name,
            word: Word::$word,
            bit: $bit,
            level: Level::$level,
            instructions: &[$($(F::$f),*)?],
        }),*];
    };
}

features! {
    "fpu" L1Edx 0 V1 [FPU, FPU287, FPU387];
    "vme" L1Edx 1 V1;
    "de" L1Edx 2 V1;
    "pse" L1Edx 3 V1;
    "tsc" L1Edx 4 V1 [TSC];
    "msr" L1Edx 5 V1 [MSR];
    "pae" L1Edx 6 V1;
    "mce" L1Edx 7 V1;
    "cx8" L1Edx 8 V1 [CX8];
    "apic" L1Edx 9 V1;
    "sep" L1Edx 11 V1 [SEP];
    "mtrr" L1Edx 12 V1;
    "pge" L1Edx 13 V1;
    "mca" L1Edx 14 V1;
    "cmov" L1Edx 15 V1 [CMOV];
    "pat" L1Edx 16 V1;
    "pse36" L1Edx 17 V1;
    "clflush" L1Edx 19 V1 [CLFSH];
    "mmx" L1Edx 23 V1 [MMX];
    "fxsr" L1Edx 24 V1 [FXSR];
    "sse" L1Edx 25 V1 [SSE];
    "sse2" L1Edx 26 V1 [SSE2];
    "sse3" L1Ecx 0 V2 [SSE3];
    "pclmulqdq" L1Ecx 1 Max [PCLMULQDQ];
    "ssse3" L1Ecx 9 V2 [SSSE3];
    "cx16" L1Ecx 13 V2 [CMPXCHG16B];
    "pcid" L1Ecx 17 Default;
    "sse4.1" L1Ecx 19 V2 [SSE4_1];
    "sse4.2" L1Ecx 20 V2 [SSE4_2];
    "x2apic" L1Ecx 21 Default;
    "movbe" L1Ecx 22 Default [MOVBE];
    "popcnt" L1Ecx 23 V2 [POPCNT];
    "tsc-deadline" L1Ecx 24 Default;
    "aes" L1Ecx 25 Max [AES];
    "xsave" L1Ecx 26 Max [XSAVE];
    "rdrand" L1Ecx 30 Default [RDRAND];
    "hypervisor" L1Ecx 31 V1;
    // The x87 unit keeps no selectors.
    "zero-fcs-fds" L7Ebx 13 V1;
    "fsgsbase" L7Ebx 0 Default [FSGSBASE];
    "tsc-adjust" L7Ebx 1 Default;
    "bmi1" L7Ebx 3 Max [BMI1];
    "smep" L7Ebx 7 Max;
    "bmi2" L7Ebx 8 Max [BMI2];
    "erms" L7Ebx 9 Default;
    "invpcid" L7Ebx 10 Default [INVPCID];
    "rdseed" L7Ebx 18 Default [RDSEED];
    "adx" L7Ebx 19 Default [ADX];
    "smap" L7Ebx 20 Max [SMAP];
    "clflushopt" L7Ebx 23 Default [CLFLUSHOPT];
    "clwb" L7Ebx 24 Max [CLWB];
    "sha" L7Ebx 29 Max [SHA];
    "umip" L7Ecx 2 Max;
    "pku" L7Ecx 3 Max [PKU];
    "la57" L7Ecx 16 Max;
    "rdpid" L7Ecx 22 Default [RDPID];
    "pks" L7Ecx 31 Max;
    "fsrm" L7Edx 4 Default;
    "spec-ctrl" L7Edx 26 Default;
    "arch-capabilities" L7Edx 29 Default;
    "ssbd" L7Edx 31 Default;
    "xsaveopt" LDEax 0 Max [XSAVEOPT];
    "xsavec" LDEax 1 Max [XSAVEC];
    "xsaves" LDEax 3 Max [XSAVES];
    "lahf" X1Ecx 0 V1;
    "lzcnt" X1Ecx 5 Max [LZCNT];
    "prefetchw" X1Ecx 8 Default;
    "syscall" X1Edx 11 V1 [SYSCALL];
    "nx" X1Edx 20 V1;
    "pdpe1gb" X1Edx 26 Default;
    "rdtscp" X1Edx 27 Default [RDTSCP];
    "lm" X1Edx 29 V1 [X64];
    "invariant-tsc" X7Edx 8 V1;
    "kvm" Kvm 0 V1;
}

/// Instructions that every model has: the base set, and encodings that are no-operations where the
/// feature behind them is absent.
const ALWAYS: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::CPUID,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::PREFETCHW,
    F::PREFETCHWT1,
    F::PREFETCHITI,
    F::CLDEMOTE,
    F::CET_IBT,
    F::RDPMC,
    F::SMM,
    F::WBNOINVD,
    F::VMX,
    F::INVEPT,
    F::INVVPID,
];

/// A set of instruction-set features.
#[derive(Clone, Copy, Debug, Default)]
struct Set([u64; 4]);

impl Set {
    fn put(&mut self, f: F, on: bool) {
        let n = f as usize & 255;
        let bit = 1 << (n & 63);
        self.0[n >> 6] = self.0[n >> 6] & !bit | if on { bit } else { 0 };
    }

    #[inline]
    fn has(&self, f: F) -> bool {
        let n = f as usize & 255;
        self.0[n >> 6] >> (n & 63) & 1 != 0
    }
}

/// Why a model description is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// No model has this name.
    #[error("unknown cpu model {0:?}: known are {known}", known = Model::NAMES.join(", "))]
    Model(String),
    /// No feature has this name.
    #[error("unknown cpu feature {0:?}")]
    Feature(String),
    /// A width that no model has.
    #[error("{0:?}: a physical address has 36 to 48 bits")]
    PhysBits(String),
}

/// Physical-address width of a model unless it says otherwise: 1 TiB. Firmware maps all that there may be.
const PHYS_BITS: u8 = 40;

/// What CPUID depends on beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// APIC identifier of the processor that executes CPUID.
    pub apic_id: u32,
    /// Processors in the package.
    pub cpus: u32,
    /// CR4, for OSXSAVE and OSPKE.
    pub cr4: u64,
    /// XCR0, for the size of the XSAVE area.
    pub xcr0: u64,
}

impl Default for CpuidContext {
    fn default() -> Self {
        Self { apic_id: 0, cpus: 1, cr4: 0, xcr0: 1 }
    }
}

/// A CPU model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Who it says has made it.
    pub vendor: Vendor,
    phys_bits: u8,
    words: [u32; WORDS],
    instructions: Set,
}

impl Default for Model {
    fn default() -> Self {
        Self::at(Level::Default)
    }
}

impl Model {
    /// The models [`Model::named`] knows.
    pub const NAMES: [&'static str; 4] = ["default", "max", "x86-64-v1", "x86-64-v2"];

    /// The smallest model: x86-64-v1.
    pub fn v1() -> Self {
        Self::at(Level::V1)
    }

    /// Everything that is implemented.
    pub fn max() -> Self {
        Self::at(Level::Max)
    }

    fn at(level: Level) -> Self {
        let mut model = Self {
            vendor: Vendor::Intel,
            phys_bits: PHYS_BITS,
            words: [0; WORDS],
            instructions: Set::default(),
        };
        for f in ALWAYS {
            model.instructions.put(*f, true);
        }
        for f in FEATURES.iter().filter(|f| f.level <= level) {
            model.put(f, true);
        }
        model
    }

    /// A model by name, with features switched: `max,-smep`, `default,+aes,vendor=amd,phys-bits=46`.
    ///
    /// # Errors
    /// A name that does not exist.
    pub fn named(description: &str) -> Result<Self, ModelError> {
        let mut parts = description.split(',').map(str::trim);
        let mut model = match parts.next().unwrap_or_default() {
            "default" | "" => Self::at(Level::Default),
            "max" => Self::at(Level::Max),
            "x86-64-v1" => Self::at(Level::V1),
            "x86-64-v2" => Self::at(Level::V2),
            other => return Err(ModelError::Model(other.to_owned())),
        };
        for part in parts {
            match part {
                "vendor=intel" => model.vendor = Vendor::Intel,
                "vendor=amd" => model.vendor = Vendor::Amd,
                _ if part.starts_with("phys-bits=") => {
                    let bits = part.trim_start_matches("phys-bits=").parse().ok();
                    let bits = bits.filter(|bits| (36..=48).contains(bits));
                    model.phys_bits = bits.ok_or_else(|| ModelError::PhysBits(part.to_owned()))?;
                }
                _ => {
                    let on = !part.starts_with('-');
                    model.switch(part.trim_start_matches(['-', '+']), on)?;
                }
            }
        }
        Ok(model)
    }

    /// Switches a feature on or off.
    ///
    /// # Errors
    /// No feature has this name.
    pub fn switch(&mut self, name: &str, on: bool) -> Result<(), ModelError> {
        let f = FEATURES.iter().find(|f| f.name == name);
        self.put(f.ok_or_else(|| ModelError::Feature(name.to_owned()))?, on);
        Ok(())
    }

    fn put(&mut self, f: &Feature, on: bool) {
        self.set(f.word, f.bit, on);
        if f.word == Word::Kvm {
            // A system that is told both takes the time-stamp counter for its clock.
            self.set(Word::X7Edx, INVARIANT_TSC, !on);
        }
        for i in f.instructions {
            self.instructions.put(*i, on);
        }
    }

    fn set(&mut self, word: Word, bit: u8, on: bool) {
        let word = &mut self.words[word as usize];
        *word = *word & !(1 << bit) | u32::from(on) << bit;
    }

    /// Whether a feature of the table is on.
    pub fn has(&self, name: &str) -> bool {
        FEATURES.iter().any(|f| f.name == name && self.words[f.word as usize] >> f.bit & 1 != 0)
    }

    /// Whether the model knows this instruction.
    #[inline]
    pub fn supports(&self, i: &Instruction) -> bool {
        if !matches!(i.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
            return false;
        }
        let mut features = i.cpuid_features().iter();
        features.all(|f| self.instructions.has(*f)) || matches!(i.code(), Code::Rdsspd_r32 | Code::Rdsspq_r64)
    }

    /// Options for decoding this model's code.
    pub(crate) fn decoder_options(&self) -> u32 {
        let has = |f| self.instructions.has(f);
        crate::lower::options(has(F::BMI1), has(F::LZCNT))
    }

    /// Family, model and stepping as in CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        match self.vendor {
            // Family 6, model 0x36, stepping 1.
            Vendor::Intel => 0x0003_0661,
            // Family 15, model 0x6b, stepping 1.
            Vendor::Amd => 0x0006_0fb1,
        }
    }

    /// Physical-address width in bits.
    pub fn phys_bits(&self) -> u8 {
        self.phys_bits
    }

    /// Linear-address width in bits, of the widest paging mode.
    pub fn linear_bits(&self) -> u8 {
        let five_levels = self.words[Word::L7Ecx as usize] >> 16 & 1 != 0;
        if five_levels { 57 } else { 48 }
    }

    /// The bits of CR4 that may be set.
    pub fn cr4_allowed(&self) -> u64 {
        let mut bits = cr4::VME
            | cr4::PVI
            | cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        for (name, bit) in [
            ("umip", cr4::UMIP),
            ("fsgsbase", cr4::FSGSBASE),
            ("pcid", cr4::PCIDE),
            ("xsave", cr4::OSXSAVE),
            ("smep", cr4::SMEP),
            ("smap", cr4::SMAP),
            ("la57", cr4::LA57),
            ("pku", cr4::PKE),
            ("pks", cr4::PKS),
        ] {
            if self.has(name) {
                bits |= bit;
            }
        }
        bits
    }

    /// CPUID: EAX, EBX, ECX, EDX (SDM vol. 2, CPUID).
    ///
    /// A leaf above the highest basic one answers as that one does (Intel), or with zeros (AMD).
    pub fn cpuid(&self, leaf: u32, subleaf: u32, context: &CpuidContext) -> [u32; 4] {
        let intel = self.vendor == Vendor::Intel;
        let max_basic = if intel { 0x16 } else { 0xd };
        let leaf = if intel && (leaf > max_basic && leaf < 0x4000_0000 || leaf > 0x8000_0008) {
            max_basic
        } else {
            leaf
        };
        let word = |w: Word| self.words[w as usize];
        match leaf {
            0 => self.vendor_leaf(max_basic),
            1 => self.leaf_1(context),
            // One byte says: look at leaf 4.
            2 if intel => [0x00ff_0001, 0, 0, 0],
            4 if intel => cache_leaf(subleaf, context.cpus),
            // The APIC timer always runs.
            6 => [1 << 2, 0, 0, 0],
            7 if subleaf == 0 => {
                let ospke = if context.cr4 & cr4::PKE != 0 { 1 << 4 } else { 0 };
                [0, word(Word::L7Ebx), word(Word::L7Ecx) | ospke, word(Word::L7Edx)]
            }
            0xb if intel => topology_leaf(subleaf, context),
            0xd => self.xsave_leaf(subleaf, context.xcr0),
            0x15 if intel => [1, 1, 1_000_000_000, 0],
            0x16 if intel => [1000, 1000, 100, 0],
            0x8000_0000 => {
                let [_, b, c, d] = self.vendor_leaf(0);
                if intel { [0x8000_0008, 0, 0, 0] } else { [0x8000_0008, b, c, d] }
            }
            0x8000_0001 => {
                // AMD repeats what leaf 1 says.
                let shared = if intel { 0 } else { word(Word::L1Edx) & 0x0183_f3ff };
                let signature = if intel { 0 } else { self.signature() };
                [signature, 0, word(Word::X1Ecx), word(Word::X1Edx) | shared]
            }
            0x8000_0002..=0x8000_0004 => brand(leaf - 0x8000_0002),
            0x8000_0005 if !intel => {
                [0, 0, 32 << 24 | 8 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64]
            }
            // 8-way, 64 bytes a line.
            0x8000_0006 => [0, 0, L2_KIB << 16 | 6 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, word(Word::X7Edx)],
            0x8000_0008 => {
                let cores = if intel { 0 } else { context.cpus.saturating_sub(1).min(255) };
                let linear = u32::from(self.linear_bits());
                [linear << 8 | u32::from(self.phys_bits()), 0, cores, 0]
            }
            _ => [0; 4],
        }
    }

    /// Bits of XCR0 that can be set.
    pub(crate) fn xcr0_bits(&self) -> u64 {
        X87_STATE | SSE_STATE | if self.has("pku") { PKRU_STATE } else { 0 }
    }

    /// Leaf 0xd: x87, SSE and PKRU state, in either format.
    fn xsave_leaf(&self, subleaf: u32, xcr0: u64) -> [u32; 4] {
        let (at, bytes) = (PKRU_AT as u32, PKRU_BYTES as u32);
        let size = |components: u64| if components & PKRU_STATE != 0 { at + bytes } else { XSAVE_SIZE };
        let compacted = XSAVE_SIZE + if xcr0 & PKRU_STATE != 0 { bytes } else { 0 };
        match subleaf {
            _ if !self.has("xsave") => [0; 4],
            0 => [self.xcr0_bits() as u32, size(xcr0), size(self.xcr0_bits()), 0],
            // Bit 2: XGETBV with ECX 1.
            1 => [self.words[Word::LDEax as usize] | 1 << 2, compacted, 0, 0],
            9 if self.has("pku") => [bytes, at, 0, 0],
            _ => [0; 4],
        }
    }

    fn vendor_leaf(&self, max: u32) -> [u32; 4] {
        let name: &[u8; 12] = match self.vendor {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        };
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        [max, word(0), word(8), word(4)]
    }

    fn leaf_1(&self, context: &CpuidContext) -> [u32; 4] {
        let cpus = context.cpus.max(1);
        let logical = cpus.next_power_of_two().min(255);
        let ebx = context.apic_id << 24 | logical << 16 | (64 / 8) << 8;
        let osxsave = if context.cr4 & cr4::OSXSAVE != 0 { 1 << 27 } else { 0 };
        let several = if cpus > 1 { 1 << 28 } else { 0 };
        let (ecx, edx) = (self.words[Word::L1Ecx as usize], self.words[Word::L1Edx as usize]);
        [self.signature(), ebx, ecx | osxsave, edx | several]
    }
}

/// Leaf 4: first-level data and instruction caches, second-level cache; all private to a core.
fn cache_leaf(subleaf: u32, cpus: u32) -> [u32; 4] {
    let (kind, level, kib, ways) = match subleaf {
        0 => (1, 1, 32, 8),
        1 => (2, 1, 32, 8),
        2 => (3, 2, L2_KIB, 8),
        _ => return [0; 4],
    };
    let cores = cpus.max(1).next_power_of_two().min(64) - 1;
    let sets = kib * 1024 / (ways * 64);
    // Self-initialising.
    [cores << 26 | 1 << 8 | level << 5 | kind, (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Leaf 0xb: one thread a core, all cores in one package.
fn topology_leaf(subleaf: u32, context: &CpuidContext) -> [u32; 4] {
    let cpus = context.cpus.max(1);
    let shift = cpus.next_power_of_two().trailing_zeros();
    match subleaf {
        0 => [0, 1, 1 << 8, context.apic_id],
        1 => [shift, cpus, 2 << 8 | 1, context.apic_id],
        _ => [0, 0, subleaf & 0xff, context.apic_id],
    }
}

/// A third of the brand string.
fn brand(part: u32) -> [u32; 4] {
    let mut text = [0u8; 48];
    let name = b"Trapline software processor";
    text[..name.len()].copy_from_slice(name);
    let at = part as usize * 16;
    [0, 4, 8, 12]
        .map(|i| u32::from_le_bytes([text[at + i], text[at + i + 1], text[at + i + 2], text[at + i + 3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_grow() {
        let (v1, v2, max) = (Model::v1(), Model::named("x86-64-v2").unwrap(), Model::max());
        assert!(v1.has("sse2") && !v1.has("sse4.2"));
        assert!(v2.has("sse4.2") && v2.has("cx16") && !v2.has("smep"));
        assert!(max.has("smep") && max.has("umip") && max.has("aes"));
        assert!(Model::default().has("pcid") && !Model::default().has("smap"));
    }

    #[test]
    fn descriptions() {
        let m = Model::named("default,-pcid,+smep,vendor=amd,phys-bits=46").unwrap();
        assert_eq!((m.phys_bits(), Model::max().phys_bits()), (46, 40));
        for wrong in ["phys-bits=35", "phys-bits=49", "phys-bits=", "phys-bits=x"] {
            let error = Model::named(&format!("max,{wrong}")).unwrap_err();
            assert_eq!(error.to_string(), format!("{wrong:?}: a physical address has 36 to 48 bits"));
        }
        assert!(!m.has("pcid") && m.has("smep"));
        assert_eq!(m.vendor, Vendor::Amd);
        assert_eq!(m.cr4_allowed() & (cr4::PCIDE | cr4::SMEP), cr4::SMEP);
        assert_eq!(Model::named("vax").unwrap_err(), ModelError::Model("vax".into()));
        assert_eq!(Model::named("max,+warp").unwrap_err(), ModelError::Feature("warp".into()));
    }

    #[test]
    fn leaves() {
        let m = Model::default();
        let c = CpuidContext { apic_id: 2, cpus: 4, ..CpuidContext::default() };
        assert_eq!(m.cpuid(0, 0, &c)[1..], [0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
        let [eax, ebx, _, edx] = m.cpuid(1, 0, &c);
        assert_eq!(eax, 0x30661);
        assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (2, 4));
        assert_ne!(edx & 1 << 28, 0);
        assert_eq!(m.cpuid(0x15, 0, &c), [1, 1, 1_000_000_000, 0]);
        assert_eq!(m.cpuid(0xb, 1, &c), [2, 4, 0x201, 2]);
        assert_ne!(m.cpuid(0x8000_0001, 0, &c)[3] & 1 << 29, 0);
        // Beyond the last basic leaf, the last one answers.
        assert_eq!(m.cpuid(0x1234, 0, &c), m.cpuid(0x16, 0, &c));
        assert_eq!(m.cpuid(7, 0, &c)[1] & (1 << 7), 0);
    }

    #[test]
    fn the_xsave_area_grows_with_what_is_enabled() {
        let m = Model::max();
        let leaf = |subleaf, xcr0| m.cpuid(0xd, subleaf, &CpuidContext { xcr0, ..CpuidContext::default() });
        assert_eq!(leaf(0, 3), [0x203, 576, 2696, 0]);
        assert_eq!(leaf(0, 0x203), [0x203, 2696, 2696, 0]);
        assert_eq!((leaf(1, 0x203)[1], leaf(9, 3)), (584, [8, 2688, 0, 0]));
        let context = CpuidContext { cr4: cr4::PKE, ..CpuidContext::default() };
        assert_eq!(m.cpuid(7, 0, &context)[2] & 0x18, 0x18, "PKU and OSPKE");
    }

    #[test]
    fn vex_instructions_do_not_exist_but_for_general_registers() {
        let mut d =
            iced_x86::Decoder::new(64, &[0xc5, 0xf8, 0x77, 0xc4, 0xe2, 0xf0, 0xf2, 0xc2, 0x0f, 0x05], 0);
        assert!(!Model::max().supports(&d.decode()));
        let andn = d.decode();
        assert!(Model::max().supports(&andn) && !Model::v1().supports(&andn));
        assert!(Model::v1().supports(&d.decode()));
    }
}
