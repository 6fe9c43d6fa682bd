//! CPU models: what CPUID says, and with it which instructions work.

use iced_x86::{CpuidFeature, Instruction};

/// A CPU model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Instruction-set features of iced-x86's that this model has; an instruction is known if one
    /// of its features is.
    features: Vec<CpuidFeature>,
}

impl Model {
    /// The smallest model: x86-64-v1.
    pub fn v1() -> Self {
        use CpuidFeature as F;
        let features = vec![
            F::INTEL8086,
            F::INTEL8086_ONLY,
            F::INTEL186,
            F::INTEL286,
            F::INTEL386,
            F::INTEL486,
            F::X64,
            F::CPUID,
            F::CMOV,
            F::CX8,
            F::FPU,
            F::FPU287,
            F::FPU387,
            F::FXSR,
            F::MMX,
            F::MSR,
            F::MULTIBYTENOP,
            F::PAUSE,
            F::PREFETCHW,
            F::SEP,
            F::SSE,
            F::SSE2,
            F::SYSCALL,
            F::TSC,
            F::CLFSH,
            F::CX8,
            F::INTEL286_ONLY,
            F::RDPMC,
            F::SMM,
            F::CET_IBT,
        ];
        Self { features }
    }

    /// Whether the model knows this instruction.
    pub fn supports(&self, i: &Instruction) -> bool {
        i.cpuid_features().iter().any(|f| self.features.contains(f))
    }

    /// Options for decoding this model's code.
    pub(crate) fn decoder_options(&self) -> u32 {
        let has = |f| self.features.contains(&f);
        crate::lower::options(has(CpuidFeature::BMI1), has(CpuidFeature::LZCNT))
    }

    /// Family, model and stepping as in CPUID.1:EAX.
    pub fn signature(&self) -> u32 {
        0x000f_0600
    }

    /// Physical-address width in bits.
    pub fn phys_bits(&self) -> u8 {
        46
    }
}
