//! CPUID leaves for a guest, whichever the engine (SDM vol. 2, CPUID; APM vol. 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use trapline_softcpu::cpuid::CpuidContext;

use crate::{Error, Result};

/// How the vCPUs are arranged. vCPU `n` is thread `n % threads` of core `n / threads % cores` of package
/// `n / threads / cores`, and its APIC ID is `n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Topology {
    /// Packages: at least 1.
    pub packages: u32,
    /// Cores in a package: a power of two.
    pub cores: u32,
    /// Threads of a core: 1 or 2.
    pub threads: u32,
}

impl Topology {
    /// One package for each vCPU: right for any number of them.
    pub const fn flat(vcpus: u32) -> Self {
        Self { packages: vcpus, cores: 1, threads: 1 }
    }

    /// vCPUs in all: APIC IDs are below this.
    pub const fn vcpus(&self) -> u32 {
        self.packages.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_APIC: u32 = 1 << 9;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT1_ECX_SVM: u32 = 1 << 2;
/// What 8000_0001:EDX repeats of 1:EDX on AMD processors.
const EXT1_EDX_SHARED: u32 = 0x0183_f3ff;
/// What KVM, or the soft engine in its place, offers to guests that know it.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Its features that need a local APIC: ASYNC_PF, PV_EOI, PV_UNHALT, PV_SEND_IPI, ASYNC_PF_INT.
const KVM_WITH_APIC: u32 = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14;
/// AMX-BF16, AMX-TILE, AMX-INT8.
const LEAF7_EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// AMX-FP16.
const LEAF7_1_EAX_AMX: u32 = 1 << 21;
/// TILECFG and TILEDATA in XCR0.
const XCR0_AMX: u32 = 0b11 << 17;
const LEAFD_1_EAX_XFD: u32 = 1 << 4;

/// The leaves of `base` (from [`Vm::supported_cpuid`](crate::Vm::supported_cpuid)) as vCPU `id` sees
/// them: APIC ID, and what of caches and package it shares.
///
/// # Errors
/// When the topology has no such vCPU or cannot be expressed, or the leaves are too many.
pub fn for_vcpu(base: &CpuId, topology: &Topology, id: u32) -> Result<CpuId> {
    let Topology { cores, threads, .. } = *topology;
    if id >= topology.vcpus() || id > 0xfe || !cores.is_power_of_two() || !matches!(threads, 1 | 2) {
        return Err(Error::NotFound { what: "vcpu in this cpu topology", id: id.into() });
    }
    let per_package = cores * threads;
    let topology_leaf = base.as_slice().iter().any(|e| e.function == 0xb);
    let mut leaves: Vec<kvm_cpuid_entry2> = Vec::with_capacity(base.as_slice().len() + 3);
    // 0xB is rebuilt below; 0x1F and 0x8000_0026 say the same in more words, and would describe the host.
    leaves.extend(base.as_slice().iter().filter(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026)));
    for leaf in &mut leaves {
        match leaf.function {
            1 => {
                leaf.ebx = leaf.ebx & 0xffff | per_package.min(255) << 16 | id << 24;
                set(&mut leaf.edx, LEAF1_EDX_HTT, per_package > 1);
            }
            // Deterministic caches: the first two levels are a core's, the rest a package's.
            4 if leaf.eax & 0x1f != 0 => {
                let sharing = if leaf.eax >> 5 & 7 < 3 { threads } else { per_package };
                leaf.eax = leaf.eax & 0x3fff | ((sharing - 1) & 0xfff) << 14 | ((cores - 1) & 0x3f) << 26;
            }
            0x8000_0001 => keep(&mut leaf.ecx, EXT1_ECX_CMP_LEGACY, per_package > 1),
            0x8000_0008 => {
                leaf.ecx = leaf.ecx & !0xf0ff | (per_package - 1) & 0xff | per_package.ilog2() << 12;
            }
            0x8000_001d if leaf.eax & 0x1f != 0 => {
                let sharing = if leaf.eax >> 5 & 7 < 3 { threads } else { per_package };
                leaf.eax = leaf.eax & 0x3fff | ((sharing - 1) & 0xfff) << 14;
            }
            0x8000_001e => {
                leaf.eax = id;
                leaf.ebx = (id / threads) & 0xff | (threads - 1) << 8;
                leaf.ecx = 0;
            }
            _ => {}
        }
    }
    if topology_leaf {
        leaves.extend(extended_topology(topology, id));
    }
    CpuId::from_entries(&leaves)
        .map_err(|_| Error::NotFound { what: "room for cpuid leaf", id: leaves.len() as u64 })
}

/// Leaf 0xB: thread level, core level, end.
fn extended_topology(topology: &Topology, id: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, below: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: if kind == 0 { 0 } else { below.ilog2() },
        ebx: below,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    let Topology { cores, threads, .. } = *topology;
    [level(0, 1, threads), level(1, 2, cores * threads), level(2, 0, 0)]
}

/// What an engine offers beyond what its CPUID says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Keep VMX and SVM.
    pub nested: bool,
    /// There are local APICs.
    pub local_apic: bool,
    /// They have the x2APIC mode.
    pub x2apic: bool,
    /// The local APIC's timer has the TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Say that there is a hypervisor.
    pub hypervisor: bool,
}

/// Takes out what this crate does not support and puts in what the engine offers on top.
pub(crate) fn filter(host: &CpuId, offer: Offer) -> Vec<kvm_cpuid_entry2> {
    let is_amx = |e: &kvm_cpuid_entry2| {
        matches!(e.function, 0x1d | 0x1e) || e.function == 0xd && matches!(e.index, 17 | 18)
    };
    let mut leaves: Vec<_> = host.as_slice().iter().filter(|e| !is_amx(e)).copied().collect();
    // The XSAVE area ends where its last remaining component does.
    let xsave_end = leaves.iter().filter(|e| e.function == 0xd && e.index >= 2 && e.ecx & 1 == 0);
    let xsave_end = xsave_end.map(|e| e.ebx.saturating_add(e.eax)).max().unwrap_or(0).max(576);
    for leaf in &mut leaves {
        match (leaf.function, leaf.index) {
            (1, _) => {
                keep(&mut leaf.ecx, LEAF1_ECX_VMX, offer.nested);
                set(&mut leaf.ecx, LEAF1_ECX_X2APIC, offer.local_apic && offer.x2apic);
                set(&mut leaf.ecx, LEAF1_ECX_TSC_DEADLINE, offer.local_apic && offer.tsc_deadline);
                set(&mut leaf.ecx, LEAF1_ECX_HYPERVISOR, offer.hypervisor);
                set(&mut leaf.edx, LEAF1_EDX_APIC, offer.local_apic);
            }
            (7, 0) => leaf.edx &= !LEAF7_EDX_AMX,
            (7, 1) => leaf.eax &= !LEAF7_1_EAX_AMX,
            (0xd, 0) => {
                leaf.eax &= !XCR0_AMX;
                leaf.ecx = xsave_end;
            }
            (0xd, 1) => leaf.eax &= !LEAFD_1_EAX_XFD,
            (0x8000_0001, _) => keep(&mut leaf.ecx, EXT1_ECX_SVM, offer.nested),
            (KVM_FEATURES, _) => keep(&mut leaf.eax, KVM_WITH_APIC, offer.local_apic),
            _ => {}
        }
    }
    leaves
}

/// The last basic and extended leaf that [`restrict`] keeps: beyond them lie features that no model has.
const LAST_LEAVES: [u32; 2] = [0x16, 0x8000_0008];
/// What a hypervisor says about itself.
const HYPERVISOR: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;

/// Takes out of a host's leaves the features that `model` does not have, so that nothing else is shown
/// than what [`Model`](crate::CpuModel) knows to execute. Vendor, family and sizes stay the host's.
pub(crate) fn restrict(leaves: &mut Vec<kvm_cpuid_entry2>, model: &crate::CpuModel) {
    let context = CpuidContext::default();
    let [basic, extended] = LAST_LEAVES;
    leaves.retain(|leaf| {
        let known = leaf.function <= basic || (0x8000_0000..=extended).contains(&leaf.function);
        let vectors = leaf.function == 0xd && leaf.index > 1;
        HYPERVISOR.contains(&leaf.function) && model.has("kvm") || known && !vectors
    });
    for leaf in leaves {
        let [eax, ebx, ecx, edx] = model.cpuid(leaf.function, leaf.index, &context);
        match (leaf.function, leaf.index) {
            (0, _) => leaf.eax = leaf.eax.min(basic),
            (0x8000_0000, _) => leaf.eax = leaf.eax.min(extended),
            (1, _) => (leaf.ecx, leaf.edx) = (leaf.ecx & ecx, leaf.edx & edx),
            (7, 0) => {
                (leaf.ebx, leaf.ecx, leaf.edx) = (leaf.ebx & ebx, leaf.ecx & ecx, leaf.edx & edx);
                leaf.eax = 0;
            }
            (0xd, 0) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & eax, ebx, ecx, leaf.edx & edx),
            (0xd, 1) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (leaf.eax & eax, ebx, 0, 0),
            // Performance counters, SGX, Intel PT, and feature leaves that came later.
            (7 | 0xa | 0x12 | 0x14, _) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
            (0x8000_0001, _) => {
                // AMD repeats leaf 1 here.
                let [.., shared] = model.cpuid(1, 0, &context);
                (leaf.ecx, leaf.edx) = (leaf.ecx & ecx, leaf.edx & (edx | shared & EXT1_EDX_SHARED));
            }
            (0x8000_0008, _) => leaf.ebx = 0,
            _ => {}
        }
    }
}

/// Whether `leaves` show no more than [`restrict`] would leave.
pub(crate) fn within(leaves: &[kvm_cpuid_entry2], model: &crate::CpuModel) -> bool {
    let mut restricted = leaves.to_vec();
    restrict(&mut restricted, model);
    restricted == leaves
}

/// Takes out what a guest would use VMCALL for: PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD.
pub(crate) fn without_hypercalls(leaves: &mut [kvm_cpuid_entry2]) {
    for leaf in leaves.iter_mut().filter(|leaf| leaf.function == KVM_FEATURES) {
        leaf.eax &= !(1 << 7 | 1 << 11 | 1 << 13);
    }
}

/// Clears `bits` unless they may stay.
fn keep(word: &mut u32, bits: u32, may_stay: bool) {
    if !may_stay {
        *word &= !bits;
    }
}

/// Sets or clears `bits`.
fn set(word: &mut u32, bits: u32, on: bool) {
    *word = if on { *word | bits } else { *word & !bits };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(id: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *id.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn apic_id_and_sharing_follow_the_topology() {
        let base = CpuId::from_entries(&[
            leaf(1, 0, [0, 0x99ff_0800, 0, 0]),
            leaf(4, 0, [0x21, 0, 0, 0]),
            leaf(4, 1, [0x63, 0, 0, 0]),
            leaf(4, 2, [0, 0, 0, 0]),
            leaf(0xb, 0, [9, 9, 9, 9]),
            leaf(0x1f, 0, [9, 9, 9, 9]),
        ])
        .unwrap();
        let topology = Topology { packages: 2, cores: 4, threads: 2 };
        let id = for_vcpu(&base, &topology, 13).unwrap();
        assert_eq!(find(&id, 1, 0).ebx, 13 << 24 | 8 << 16 | 0x0800);
        assert_ne!(find(&id, 1, 0).edx & 1 << 28, 0);
        assert_eq!(find(&id, 4, 0).eax, 0x21 | 1 << 14 | 3 << 26, "first level: two threads");
        assert_eq!(find(&id, 4, 1).eax, 0x63 | 7 << 14 | 3 << 26, "third level: the package");
        assert_eq!(find(&id, 4, 2).eax, 0, "no more caches");
        assert_eq!((find(&id, 0xb, 0).eax, find(&id, 0xb, 0).ebx, find(&id, 0xb, 0).ecx), (1, 2, 0x100));
        assert_eq!((find(&id, 0xb, 1).eax, find(&id, 0xb, 1).ebx, find(&id, 0xb, 1).ecx), (3, 8, 0x201));
        assert_eq!((find(&id, 0xb, 2).eax, find(&id, 0xb, 2).ebx, find(&id, 0xb, 2).edx), (0, 0, 13));
        assert!(id.as_slice().iter().all(|e| e.function != 0x1f));
    }

    #[test]
    fn vcpus_outside_the_topology_are_refused() {
        let base = CpuId::from_entries(&[leaf(1, 0, [0; 4])]).unwrap();
        assert!(for_vcpu(&base, &Topology::flat(3), 2).is_ok());
        assert!(for_vcpu(&base, &Topology::flat(3), 3).is_err());
        assert!(for_vcpu(&base, &Topology { packages: 1, cores: 3, threads: 1 }, 0).is_err());
        assert!(for_vcpu(&base, &Topology::flat(300), 255).is_err());
    }

    #[test]
    fn amx_vmx_and_svm_are_taken_out() {
        let host = CpuId::from_entries(&[
            leaf(1, 0, [0, 0, LEAF1_ECX_VMX, 0]),
            leaf(7, 0, [0, 0, 0, u32::MAX]),
            leaf(0xd, 0, [0x6_02e7, 0, 11008, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0xd, 9, [8, 2688, 0, 0]),
            leaf(0xd, 18, [8192, 2816, 6, 0]),
            leaf(0x1d, 0, [1, 0, 0, 0]),
            leaf(KVM_FEATURES, 0, [1 << 3 | 1 << 6 | 1 << 11 | 1 << 24, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, EXT1_ECX_SVM, 0]),
        ])
        .unwrap();
        let offer =
            Offer { nested: false, local_apic: true, x2apic: true, tsc_deadline: true, hypervisor: true };
        let id = CpuId::from_entries(&filter(&host, offer)).unwrap();
        let ecx = LEAF1_ECX_X2APIC | LEAF1_ECX_TSC_DEADLINE | LEAF1_ECX_HYPERVISOR;
        assert_eq!((find(&id, 1, 0).ecx, find(&id, 1, 0).edx), (ecx, LEAF1_EDX_APIC));
        assert_eq!(find(&id, 7, 0).edx, !LEAF7_EDX_AMX);
        assert_eq!((find(&id, 0xd, 0).eax, find(&id, 0xd, 0).ecx), (0x2e7, 2696));
        assert_eq!(find(&id, 0x8000_0001, 0).ecx, 0);
        assert_eq!(id.as_slice().len(), 7);
        let without = filter(&host, Offer { local_apic: false, ..offer });
        assert_eq!(find(&CpuId::from_entries(&without).unwrap(), KVM_FEATURES, 0).eax, 1 << 3 | 1 << 24);
        let nested = filter(&host, Offer { nested: true, ..offer });
        assert_ne!(nested[0].ecx & LEAF1_ECX_VMX, 0);
    }

    #[test]
    fn a_model_takes_out_what_it_does_not_have() {
        let avx = 1 << 28;
        let mut leaves = vec![
            leaf(0, 0, [0x20, 0x756e_6547, 0, 0]),
            leaf(1, 0, [0x806f8, 0, u32::MAX, u32::MAX]),
            leaf(7, 0, [2, u32::MAX, u32::MAX, u32::MAX]),
            leaf(7, 1, [u32::MAX, 0, 0, 0]),
            leaf(0xd, 0, [0x2e7, 2696, 2696, 0]),
            leaf(0xd, 1, [0xf, 2696, 0x1800, 0]),
            leaf(0xd, 2, [256, 576, 0, 0]),
            leaf(0x1d, 0, [1, 0, 0, 0]),
            leaf(0x4000_0001, 0, [0x1007efb, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
            leaf(0x8000_0021, 0, [u32::MAX, 0, 0, 0]),
        ];
        let model = crate::CpuModel::named("x86-64-v2").unwrap();
        assert!(!within(&leaves, &model));
        restrict(&mut leaves, &model);
        assert!(within(&leaves, &model));
        let id = CpuId::from_entries(&leaves).unwrap();
        let context = CpuidContext::default();
        assert_eq!(find(&id, 0, 0).eax, 0x16);
        assert_eq!(find(&id, 1, 0).eax, 0x806f8, "the host's signature");
        assert_eq!(find(&id, 1, 0).ecx, model.cpuid(1, 0, &context)[2]);
        assert_eq!(find(&id, 1, 0).ecx & avx, 0);
        assert_eq!(find(&id, 7, 0).ebx, model.cpuid(7, 0, &context)[1]);
        assert_eq!(find(&id, 7, 1).eax, 0);
        assert_eq!((find(&id, 0xd, 0).eax, find(&id, 0xd, 0).ecx), (0, 0), "x86-64-v2 has no XSAVE");
        assert_eq!(find(&id, 0x4000_0001, 0).eax, 0x1007efb);
        assert_ne!(find(&id, 0x8000_0001, 0).edx & 1 << 29, 0, "long mode");
        let gone = |leaf: &kvm_cpuid_entry2| leaf.function == 0x1d || leaf.function == 0x8000_0021;
        assert!(!id.as_slice().iter().any(|l| gone(l) || l.function == 0xd && l.index == 2));
    }
}
