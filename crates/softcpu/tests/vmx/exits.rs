//! What instructions exit for, and what the VMCS says then (SDM vol. 3 §26.1, §28.2).

use iced_x86::code_asm::*;
use trapline_softcpu::cpu::{cr0, reg};
use trapline_vmx::controls::{ExitControls, PrimaryControls as P, SecondaryControls as S};
use trapline_vmx::exit::{AddressSize, CrAccess, CrAccessKind, InstructionInfo, IoAccess, MovDr};
use trapline_vmx::{BasicReason as R, Field as F};

use super::harness::*;

#[test]
fn cpuid_exits_before_it_has_an_effect() {
    let mut m = long();
    m.code(|a| {
        a.mov(eax, 7).unwrap();
        a.cpuid().unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::Cpuid);
    assert_eq!((m.get(F::GuestRip), m.get(F::ExitInstructionLength)), (CODE + 5, 2));
    assert_eq!((m.rax(), m.qualification()), (7, 0));
    assert_eq!((m.interruption(), m.vectoring()), (0, 0));
    m.skip();
    m.set_reg(reg::RAX, 0x55);
    m.finish();
    assert_eq!(m.rax(), 0x55);
}

#[test]
fn host_state_is_loaded_and_guest_state_saved() {
    let mut m = long();
    m.exit_controls(ExitControls::SAVE_DEBUG_CONTROLS);
    m.set(F::GuestSysenterEip, 0x1111);
    m.set(F::HostSysenterEip, 0x2222);
    m.set(F::HostFsBase, 0x3333);
    m.set(F::GuestDebugctl, 1);
    m.set(F::GuestDr7, 0x400);
    m.code(|a| {
        a.push(5).unwrap();
        a.stc().unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!((m.get(F::GuestRsp), m.get(F::GuestRflags) & 1), (STACK - 8, 1));
    assert_eq!((m.get(F::GuestSysenterEip), m.cpu.msr.sysenter_eip), (0x1111, 0x2222));
    assert_eq!((m.get(F::GuestDebugctl), m.cpu.msr.debugctl), (1, 0));
    assert_eq!((m.cpu.rip, m.reg(reg::RSP)), (0xffff_8000_0000_0000, 0x1234));
    assert_eq!((m.cpu.get_rflags(), m.cpu.dr[7], m.cpu.cpl), (2, 0x400, 0));
    assert_eq!((m.cpu.cr3, m.cpu.seg[4].base, m.cpu.gdtr.limit), (0x30_0000, 0x3333, 0xffff));
    assert_eq!(m.get(F::GuestTrAccessRights), 0x8b);
    assert_eq!(m.get(F::GuestDsAccessRights) >> 16 & 1, 1);
}

#[test]
fn hlt_exits_or_halts() {
    let mut m = long();
    m.code(|a| {
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), R::Hlt);
    assert_eq!((m.get(F::GuestActivity), m.get(F::ExitInstructionLength)), (0, 1));
    m.no_primary(P::HLT_EXITING);
    m.cpu.signals.raise_interrupt(0x30);
    // The interrupt is up before HLT.
    assert_eq!(m.run(), R::ExternalInterrupt);
    assert_eq!((m.get(F::GuestActivity), m.get(F::GuestRip)), (0, CODE));
}

#[test]
fn in_and_out_of_every_width() {
    let mut m = long();
    m.code(|a| {
        a.in_(al, 0x60).unwrap();
        a.mov(edx, 0x1f0).unwrap();
        a.in_(ax, dx).unwrap();
        a.out(dx, eax).unwrap();
        a.out(0x80, al).unwrap();
        a.vmcall().unwrap();
    });
    let io = |size: u8, port: u16| IoAccess::new().with_size(size).with_port(port);
    for want in [
        io(1, 0x60).with_input(true).with_immediate(true),
        io(2, 0x1f0).with_input(true),
        io(4, 0x1f0),
        io(1, 0x80).with_immediate(true),
    ] {
        assert_eq!(m.run(), R::Io);
        assert_eq!(IoAccess::from_bits(m.qualification()), want);
        m.skip();
    }
    m.finish();
}

#[test]
fn string_io_tells_address_segment_and_repetition() {
    let mut m = long();
    m.code(|a| {
        a.mov(edx, 0x1f0).unwrap();
        a.mov(rdi, DATA).unwrap();
        a.mov(rsi, DATA + 8).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().insw().unwrap();
        a.outsb().unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::Io);
    let want =
        IoAccess::new().with_size(2).with_port(0x1f0).with_input(true).with_string(true).with_rep(true);
    assert_eq!(IoAccess::from_bits(m.qualification()), want);
    assert_eq!(m.get(F::GuestLinearAddress), DATA);
    assert_eq!(m.get(F::ExitInstructionInfo) >> 7 & 7, 2, "64-bit addresses");
    assert_eq!(m.reg(reg::RCX), 3);
    m.skip();
    assert_eq!(m.run(), R::Io);
    assert_eq!(m.get(F::GuestLinearAddress), DATA + 8);
    assert_eq!(m.get(F::ExitInstructionInfo) >> 15 & 7, 3, "DS");
}

#[test]
fn io_bitmaps() {
    let mut m = long();
    m.no_primary(P::UNCONDITIONAL_IO_EXITING);
    m.primary(P::IO_BITMAPS);
    m.arena.write_u64(IO_BITMAP_A + 8, 1 << (0x60 % 64)).unwrap();
    m.arena.write_u64(IO_BITMAP_B, 1).unwrap();
    m.code(|a| {
        a.in_(al, 0x61).unwrap();
        a.in_(al, 0x5f).unwrap();
        a.in_(ax, 0x5f).unwrap();
        a.mov(edx, 0x8000).unwrap();
        a.in_(al, dx).unwrap();
        a.mov(edx, 0xffff).unwrap();
        a.in_(al, dx).unwrap();
        a.in_(ax, dx).unwrap();
        a.vmcall().unwrap();
    });
    for port in [0x5f, 0x8000, 0xffff] {
        assert_eq!(m.run(), R::Io);
        assert_eq!(IoAccess::from_bits(m.qualification()).port(), port);
        m.skip();
    }
    m.finish();
}

#[test]
fn msr_bitmap() {
    let mut m = long();
    // RDMSR of 174h, WRMSR of C0000081h.
    m.arena.write_u64(MSR_BITMAP + 0x174 / 64 * 8, 1 << (0x174 % 64)).unwrap();
    m.arena.write_u64(MSR_BITMAP + 3072 + 0x80 / 8, 1 << 1).unwrap();
    m.code(|a| {
        a.mov(ecx, 0x175).unwrap();
        a.rdmsr().unwrap();
        a.mov(ecx, 0x174).unwrap();
        a.wrmsr().unwrap();
        a.rdmsr().unwrap();
        a.mov(ecx, 0xc000_0081u32).unwrap();
        a.rdmsr().unwrap();
        a.wrmsr().unwrap();
        a.mov(ecx, 0x4000_0000).unwrap();
        a.rdmsr().unwrap();
        a.vmcall().unwrap();
    });
    for (reason, index) in [(R::Rdmsr, 0x174), (R::Wrmsr, 0xc000_0081), (R::Rdmsr, 0x4000_0000)] {
        assert_eq!(m.run(), reason);
        assert_eq!(m.reg(reg::RCX), index);
        m.skip();
    }
    m.finish();
    m.no_primary(P::MSR_BITMAPS);
    m.set(F::GuestRip, CODE);
    assert_eq!(m.run(), R::Rdmsr);
    assert_eq!(m.reg(reg::RCX), 0x175, "without bitmaps, every access exits");
}

#[test]
fn cr0_mask_and_shadow() {
    let mut m = long();
    m.set(F::Cr0GuestHostMask, cr0::TS | cr0::NE);
    m.set(F::Cr0ReadShadow, cr0::TS);
    m.code(|a| {
        a.mov(rax, cr0).unwrap();
        a.mov(rbx, rax).unwrap();
        a.btr(rax, 16).unwrap();
        a.mov(cr0, rax).unwrap();
        a.bts(rax, 5).unwrap();
        a.mov(cr0, rax).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::CrAccess);
    let want = CrAccess::new().with_kind(CrAccessKind::MovTo).with_register(reg::RAX);
    assert_eq!(m.qualification(), want.into_bits());
    assert_eq!(m.reg(reg::RBX) & (cr0::TS | cr0::NE), cr0::TS, "owned bits read as the shadow");
    assert_eq!(m.get(F::GuestCr0), 0x8000_0033, "bit 16 is the guest's own, and was written");
}

#[test]
fn clts_and_lmsw() {
    let mut m = long();
    m.set(F::Cr0GuestHostMask, cr0::TS);
    m.set(F::Cr0ReadShadow, cr0::TS);
    m.code(|a| {
        a.clts().unwrap();
        a.mov(ax, 1).unwrap();
        a.lmsw(ax).unwrap();
        a.mov(dword_ptr(DATA), 9).unwrap();
        a.lmsw(word_ptr(DATA)).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::CrAccess);
    assert_eq!(CrAccess::from_bits(m.qualification()).kind(), CrAccessKind::Clts);
    m.skip();
    assert_eq!(m.run(), R::CrAccess);
    let q = CrAccess::from_bits(m.qualification());
    assert_eq!((q.kind(), q.lmsw_memory(), q.lmsw_source()), (CrAccessKind::Lmsw, false, 1));
    m.skip();
    m.finish();
    assert_eq!(m.get(F::GuestCr0) & cr0::TS, 0, "the shadow had TS already: no exit, no change");
    m.set(F::Cr0ReadShadow, 0);
    m.set(F::GuestRip, CODE);
    assert_eq!(m.run(), R::CrAccess, "LMSW from memory would set TS");
    let q = CrAccess::from_bits(m.qualification());
    assert_eq!((q.kind(), q.lmsw_memory(), q.lmsw_source()), (CrAccessKind::Lmsw, true, 9));
    assert_eq!(m.get(F::GuestLinearAddress), DATA);
}

#[test]
fn cr3_targets() {
    let mut m = long();
    m.primary(P::CR3_LOAD_EXITING | P::CR3_STORE_EXITING);
    m.set(F::Cr3TargetCount, 1);
    m.set(F::Cr3Target0, PML4);
    m.code(|a| {
        a.mov(rax, PML4).unwrap();
        a.mov(cr3, rax).unwrap();
        a.or(rax, 8).unwrap();
        a.mov(cr3, rax).unwrap();
        a.mov(rbx, cr3).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::CrAccess);
    let q = CrAccess::from_bits(m.qualification());
    assert_eq!((q.cr(), q.kind(), m.rax()), (3, CrAccessKind::MovTo, PML4 | 8));
    m.skip();
    assert_eq!(m.run(), R::CrAccess);
    let q = CrAccess::from_bits(m.qualification());
    assert_eq!((q.cr(), q.kind(), q.register()), (3, CrAccessKind::MovFrom, reg::RBX));
}

#[test]
fn cr4_mask_and_cr8() {
    let mut m = long();
    m.set(F::Cr4GuestHostMask, 0x2000);
    m.primary(P::CR8_LOAD_EXITING);
    m.code(|a| {
        a.mov(rax, cr4).unwrap();
        a.mov(rcx, rax).unwrap();
        a.mov(cr4, rax).unwrap();
        a.bts(rax, 13).unwrap();
        a.mov(cr4, rax).unwrap();
        a.mov(cr8, rax).unwrap();
        a.vmcall().unwrap();
    });
    assert_eq!(m.run(), R::CrAccess);
    assert_eq!(CrAccess::from_bits(m.qualification()).cr(), 4);
    assert_eq!(m.reg(reg::RCX), 0x6a0, "VMXE is hidden");
    m.skip();
    assert_eq!(m.run(), R::CrAccess);
    assert_eq!(CrAccess::from_bits(m.qualification()).cr(), 8);
}

#[test]
fn mov_dr_invlpg_rdtsc_and_others() {
    let mut m = long();
    m.primary(P::MOV_DR_EXITING | P::INVLPG_EXITING | P::RDTSC_EXITING | P::RDPMC_EXITING | P::PAUSE_EXITING);
    m.secondary(S::WBINVD_EXITING | S::RDRAND_EXITING | S::RDSEED_EXITING | S::DESCRIPTOR_TABLE_EXITING);
    m.code(|a| {
        a.mov(dr2, rbx).unwrap();
        a.mov(rcx, dr7).unwrap();
        a.invlpg(byte_ptr(DATA + 0x123)).unwrap();
        a.rdtsc().unwrap();
        a.rdtscp().unwrap();
        a.rdpmc().unwrap();
        a.pause().unwrap();
        a.wbinvd().unwrap();
        a.invd().unwrap();
        a.rdrand(edi).unwrap();
        a.rdseed(rsi).unwrap();
        a.sgdt(fword_ptr(DATA)).unwrap();
        a.sldt(eax).unwrap();
        a.vmcall().unwrap();
    });
    let to_dr2 = MovDr::new().with_dr(2).with_register(reg::RBX).into_bits();
    let from_dr7 = MovDr::new().with_dr(7).with_from_dr(true).with_register(reg::RCX).into_bits();
    for (reason, qualification) in [
        (R::MovDr, to_dr2),
        (R::MovDr, from_dr7),
        (R::Invlpg, DATA + 0x123),
        (R::Rdtsc, 0),
        (R::Rdtscp, 0),
        (R::Rdpmc, 0),
        (R::Pause, 0),
        (R::Wbinvd, 0),
        (R::Invd, 0),
        (R::Rdrand, 0),
        (R::Rdseed, 0),
        (R::GdtrIdtrAccess, DATA),
        (R::LdtrTrAccess, 0),
    ] {
        assert_eq!(m.run(), reason);
        assert_eq!(m.qualification(), qualification, "{reason:?}");
        m.skip();
    }
    m.finish();
}

#[test]
fn vmx_instructions_exit_with_their_operands() {
    let mut m = long();
    m.code(|a| {
        a.vmclear(qword_ptr(rbx + rcx * 4 + 0x10)).unwrap();
        a.vmptrld(qword_ptr(DATA)).unwrap();
        a.vmptrst(qword_ptr(rsp).fs()).unwrap();
        a.vmxon(qword_ptr(r12 - 8)).unwrap();
        a.vmread(rdx, rsi).unwrap();
        a.vmread(qword_ptr(rdi + 1), r9).unwrap();
        a.vmwrite(r10, rbp).unwrap();
        a.vmwrite(r11, qword_ptr(rax + 2)).unwrap();
        a.invept(r8, xmmword_ptr(rdi + 3)).unwrap();
        a.invvpid(rcx, xmmword_ptr(rdi + 4)).unwrap();
        a.vmlaunch().unwrap();
        a.vmresume().unwrap();
        a.vmxoff().unwrap();
        a.vmcall().unwrap();
    });
    let memory = |segment, base: Option<u8>, index: Option<(u8, u8)>| {
        InstructionInfo::new()
            .with_address_size_number(AddressSize::A64 as u8)
            .with_segment_number(segment)
            .with_base_register(base.unwrap_or(0))
            .with_base_invalid(base.is_none())
            .with_index_register(index.map_or(0, |(index, _)| index))
            .with_scaling(index.map_or(0, |(_, scaling)| scaling))
            .with_index_invalid(index.is_none())
    };
    let register = |r| InstructionInfo::new().with_register_operand(true).with_reg1(r);
    const DS: u8 = 3;
    const FS: u8 = 4;
    for (reason, qualification, info) in [
        (R::Vmclear, 0x10, memory(DS, Some(reg::RBX), Some((reg::RCX, 2)))),
        (R::Vmptrld, DATA, memory(DS, None, None)),
        (R::Vmptrst, 0, memory(FS, Some(reg::RSP), None)),
        (R::Vmxon, -8_i64 as u64, memory(DS, Some(12), None)),
        (R::Vmread, 0, register(reg::RDX).with_reg2(reg::RSI)),
        (R::Vmread, 1, memory(DS, Some(reg::RDI), None).with_reg2(9)),
        (R::Vmwrite, 0, register(reg::RBP).with_reg2(10)),
        (R::Vmwrite, 2, memory(DS, Some(reg::RAX), None).with_reg2(11)),
        (R::Invept, 3, memory(DS, Some(reg::RDI), None).with_reg2(8)),
        (R::Invvpid, 4, memory(DS, Some(reg::RDI), None).with_reg2(reg::RCX)),
        (R::Vmlaunch, 0, InstructionInfo::new()),
        (R::Vmresume, 0, InstructionInfo::new()),
        (R::Vmxoff, 0, InstructionInfo::new()),
    ] {
        assert_eq!(m.run(), reason);
        assert_eq!(m.qualification(), qualification, "{reason:?}");
        // The operand size is undefined.
        let told = InstructionInfo::from_bits(m.get(F::ExitInstructionInfo) as u32).with_operand_size(0);
        assert_eq!(told, info, "{reason:?}");
        m.skip();
    }
    m.finish();
}

/// They exit before the privilege level is checked, but only where they are defined.
#[test]
fn vmx_instructions_at_privilege_level_3_and_in_real_mode() {
    let mut m = long();
    m.set(F::GuestCsSelector, 0x0b);
    m.set(F::GuestCsAccessRights, 0xa0fb);
    m.set(F::GuestSsSelector, 0x13);
    m.set(F::GuestSsAccessRights, 0xc0f3);
    m.code(|a| a.vmxoff().unwrap());
    assert_eq!(m.run(), R::Vmxoff);

    let mut m = real();
    m.set(F::ExceptionBitmap, 1 << 6);
    m.code16(|a| a.vmxoff().unwrap());
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption() & 0xff, 6);

    // Compatibility mode.
    let mut m = long();
    m.set(F::ExceptionBitmap, 1 << 6);
    m.set(F::GuestCsAccessRights, 0xc09b);
    m.code32(|a| a.vmptrld(qword_ptr(eax)).unwrap());
    assert_eq!(m.run(), R::ExceptionOrNmi);
    assert_eq!(m.interruption() & 0xff, 6);
}

#[test]
fn controls_that_switch_instructions_off_raise_ud() {
    let mut m = long();
    m.clear(F::SecondaryControls, (S::ENABLE_RDTSCP | S::ENABLE_INVPCID).bits().into());
    m.handler(6, |a| {
        a.vmcall().unwrap();
    });
    m.code(|a| {
        a.rdtscp().unwrap();
    });
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(6));
}

#[test]
fn privilege_is_checked_before_an_exit() {
    let mut m = long();
    m.handler(13, |a| {
        a.vmcall().unwrap();
    });
    // At privilege level 3: code and stack segments of DPL 3.
    m.set(F::GuestCsSelector, 0x0b);
    m.set(F::GuestCsAccessRights, 0xa0fb);
    m.set(F::GuestSsSelector, 0x13);
    m.set(F::GuestSsAccessRights, 0xc0f3);
    m.write(TSS + 4, 0x8000);
    m.code(|a| {
        a.hlt().unwrap();
    });
    m.finish();
    assert_eq!(m.get(F::GuestRip), Machine::handler_at(13));
    assert_eq!((m.read(0x8000 - 40), m.read(0x8000 - 48)), (CODE, 0), "return address, error code");
}

#[test]
fn a_real_mode_guest() {
    let mut m = real();
    m.code16(|a| {
        a.mov(ax, 0x1234).unwrap();
        a.push(ax).unwrap();
        a.out(0x80, al).unwrap();
        a.int(0x21).unwrap();
    });
    m.write(0x21 * 4, (CODE + 0x100) << 12 | 0x40);
    let segment = (CODE + 0x100) >> 4;
    m.write(0x21 * 4, segment << 16 | 0x40);
    m.arena.write_bytes(GUEST + CODE + 0x140, &[0xf4]).unwrap();
    assert_eq!(m.run(), R::Io);
    assert_eq!((m.get(F::GuestRsp), m.read(STACK - 2) & 0xffff), (STACK - 2, 0x1234));
    m.skip();
    assert_eq!(m.run(), R::Hlt);
    assert_eq!((m.get(F::GuestCsBase), m.get(F::GuestRip)), (segment << 4, 0x40));
    assert_eq!(m.get(F::EntryControls) >> 9 & 1, 0);
}

#[test]
fn a_guest_enters_protected_and_64_bit_mode() {
    let mut m = real();
    m.write(GDT + 8, 0x00cf_9b00_0000_ffff);
    m.set(F::GuestGdtrBase, GDT);
    m.set(F::GuestGdtrLimit, 0x2f);
    m.code16(|a| {
        a.mov(eax, cr0).unwrap();
        a.or(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.vmcall().unwrap();
    });
    m.finish();
    assert_eq!(m.get(F::GuestCr0) & 1, 1);
}
