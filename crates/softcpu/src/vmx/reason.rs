//! Basic exit reasons that the processor gives (SDM vol. 3 appendix C).

use trapline_vmx::exit::BasicReason as R;

macro_rules! reasons {
    ($($name:ident = $r:ident),* $(,)?) => {$(
        #[doc = concat!("Exit reason ", stringify!($r), ".")]
        pub const $name: u16 = R::$r as u16;
    )*};
}

reasons! {
    EXCEPTION_OR_NMI = ExceptionOrNmi, EXTERNAL_INTERRUPT = ExternalInterrupt, TRIPLE_FAULT = TripleFault,
    INTERRUPT_WINDOW = InterruptWindow, NMI_WINDOW = NmiWindow,
    TASK_SWITCH = TaskSwitch, CPUID = Cpuid, GETSEC = Getsec, HLT = Hlt, INVD = Invd, INVLPG = Invlpg,
    RDPMC = Rdpmc, RDTSC = Rdtsc, RSM = Rsm, VMCALL = Vmcall, CR_ACCESS = CrAccess, MOV_DR = MovDr,
    IO = Io, RDMSR = Rdmsr, WRMSR = Wrmsr, INVALID_GUEST_STATE = InvalidGuestState,
    MSR_LOADING = MsrLoading, MWAIT = Mwait, MONITOR_TRAP_FLAG = MonitorTrapFlag, MONITOR = Monitor,
    PAUSE = Pause, GDTR_IDTR_ACCESS = GdtrIdtrAccess, LDTR_TR_ACCESS = LdtrTrAccess,
    EPT_VIOLATION = EptViolation, EPT_MISCONFIG = EptMisconfiguration, RDTSCP = Rdtscp,
    PREEMPTION_TIMER = PreemptionTimer, WBINVD = Wbinvd, XSETBV = Xsetbv, RDRAND = Rdrand,
    INIT = Init, SIPI = Sipi, TPR_BELOW_THRESHOLD = TprBelowThreshold, APIC_ACCESS = ApicAccess,
    PML_FULL = PmlFull,
    VMCLEAR = Vmclear, VMLAUNCH = Vmlaunch, VMPTRLD = Vmptrld, VMPTRST = Vmptrst, VMREAD = Vmread,
    VMRESUME = Vmresume, VMWRITE = Vmwrite, VMXOFF = Vmxoff, VMXON = Vmxon, INVEPT = Invept, INVVPID = Invvpid,
    INVPCID = Invpcid, RDSEED = Rdseed, XSAVES = Xsaves, XRSTORS = Xrstors,
}
