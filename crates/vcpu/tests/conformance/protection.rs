//! Exceptions with their error codes, by what is forbidden (SDM vol. 3 chapters 5 and 6): privilege,
//! segments, control registers, alignment, floating point, paging.

use iced_x86::code_asm::*;
use trapline_vcpu::{CpuModel, VmConfig};

use crate::harness::*;
use crate::world::*;

type Code = fn(&mut Asm) -> AsmResult;

/// What a KVM that emulates all guest code was seen to do otherwise than the manual says.
const EMULATED_OTHERWISE: [&str; 4] = [
    "SYSRET without EFER.SCE",
    "gate of privilege level 0",
    "bad memory type in the PAT",
    "upper half of CR0",
];

/// Each code raises its exception, with this error code, at its first instruction but `skip` bytes.
fn raises(user: bool, cases: &[(&str, u8, u32, Code)]) {
    for &(what, vector, error, code) in cases {
        let program = |a: &mut Asm| {
            if user {
                to_user(a)?;
            }
            caught(a, code)?;
            a.done()
        };
        let emulation = EMULATED_OTHERWISE.contains(&what).then_some(what);
        Scenario { emulation, ..Scenario::new() }.run(program, |run| {
            let seen: Vec<_> = run.caught.iter().map(|c| (c.vector, c.error, c.cpl)).collect();
            assert_eq!(seen, [(vector, error, if user { 3 } else { 0 })], "{what}, {}", run.engine);
        });
    }
}

const MF: Code = |a| {
    a.fninit()?;
    a.push(0x37b)?; // division by zero is not masked
    a.fldcw(word_ptr(rsp))?;
    a.pop(rax)?;
    a.fld1()?;
    a.fldz()?;
    a.fdivp(st1, st0)?;
    a.wait()
};

const XM: Code = |a| {
    a.push(0x1d80)?;
    a.ldmxcsr(dword_ptr(rsp))?;
    a.pop(rax)?;
    a.mov(eax, 1)?;
    a.cvtsi2sd(xmm0, eax)?;
    a.pxor(xmm1, xmm1)?;
    a.divsd(xmm0, xmm1)
};

#[test]
fn the_kernel_is_stopped() {
    raises(
        false,
        &[
            ("INT3", 3, 0, |a| a.int3()),
            ("UD2", 6, 0, |a| a.ud2()),
            ("LOCK on a register", 6, 0, |a| a.db(&[0xf0, 0x01, 0xc0])),
            ("MOV to CR1", 6, 0, |a| a.db(&[0x0f, 0x22, 0xc8])),
            ("x87 with CR0.TS", 7, 0, |a| {
                a.mov(rax, cr0)?;
                a.or(eax, 8)?;
                a.mov(cr0, rax)?;
                a.fld1()
            }),
            ("null selector for code", 13, 0, |a| {
                a.push(0)?;
                a.push(0)?;
                a.db(&[0x48, 0xcb]) // far return
            }),
            ("far return to data", 13, u32::from(DATA32), |a| {
                a.push(i32::from(DATA32))?;
                a.push(0)?;
                a.db(&[0x48, 0xcb])
            }),
            ("selector beyond the table", 13, 0x58, |a| {
                a.mov(eax, 0x58)?;
                a.mov(fs, eax)
            }),
            ("selector in an LDT that is not there", 13, 0x0c, |a| {
                a.mov(eax, 0x0c)?;
                a.mov(es, eax)
            }),
            ("segment not present", 11, u32::from(ABSENT), |a| {
                a.mov(eax, i32::from(ABSENT))?;
                a.mov(gs, eax)
            }),
            ("stack segment not present", 12, u32::from(ABSENT), |a| {
                a.mov(eax, i32::from(ABSENT))?;
                a.mov(ss, eax)
            }),
            ("stack segment of another privilege", 13, u32::from(USER_DATA & !3), |a| {
                a.mov(eax, i32::from(USER_DATA))?;
                a.mov(ss, eax)
            }),
            ("code as the stack", 13, u32::from(CODE64), |a| {
                a.mov(eax, i32::from(CODE64))?;
                a.mov(ss, eax)
            }),
            ("task register from data", 13, u32::from(DATA32), |a| {
                a.mov(eax, i32::from(DATA32))?;
                a.ltr(ax)
            }),
            ("busy task", 13, u32::from(TASK), |a| {
                a.mov(eax, i32::from(TASK))?;
                a.ltr(ax)
            }),
            ("gate beyond the table", 13, 0x30 << 3 | 2, |a| a.int(0x30)),
            ("unknown MSR", 13, 0, |a| {
                a.mov(ecx, 0x4000_0fffu32)?;
                a.rdmsr()
            }),
            ("bad memory type in the PAT", 13, 0, |a| {
                a.mov(ecx, 0x277)?;
                a.mov(eax, 2)?;
                a.xor(edx, edx)?;
                a.wrmsr()
            }),
            ("address that is not canonical in LSTAR", 13, 0, |a| {
                a.mov(ecx, 0xc000_0082u32)?;
                a.xor(eax, eax)?;
                a.mov(edx, 0x8000_0000u32)?;
                a.wrmsr()
            }),
            ("EFER.LME changed under paging", 13, 0, |a| {
                a.mov(ecx, 0xc000_0080u32)?;
                a.rdmsr()?;
                a.and(eax, !0x100)?;
                a.wrmsr()
            }),
            ("reserved bit of CR4", 13, 0, |a| {
                a.mov(rax, cr4)?;
                a.bts(rax, 31)?;
                a.mov(cr4, rax)
            }),
            ("CR4.PAE off in long mode", 13, 0, |a| {
                a.mov(rax, cr4)?;
                a.btr(rax, 5)?;
                a.mov(cr4, rax)
            }),
            ("CR0.PG without PE", 13, 0, |a| {
                a.mov(rax, cr0)?;
                a.and(eax, !1)?;
                a.mov(cr0, rax)
            }),
            ("CR0.NW without CD", 13, 0, |a| {
                a.mov(rax, cr0)?;
                a.bts(rax, 29)?;
                a.mov(cr0, rax)
            }),
            ("upper half of CR0", 13, 0, |a| {
                a.mov(rax, cr0)?;
                a.bts(rax, 32)?;
                a.mov(cr0, rax)
            }),
            ("CR8 of 16", 13, 0, |a| {
                a.mov(eax, 16)?;
                a.mov(cr8, rax)
            }),
            ("upper half of DR7", 13, 0, |a| {
                a.mov(rax, dr7)?;
                a.bts(rax, 32)?;
                a.mov(dr7, rax)
            }),
            ("vector store that is not aligned", 13, 0, |a| a.movaps(xmmword_ptr(DATA + 1), xmm0)),
            ("load from an address that is not canonical", 13, 0, |a| {
                a.mov(rax, 0x8000_0000_0000u64)?;
                a.mov(eax, dword_ptr(rax))
            }),
            ("jump to an address that is not canonical", 13, 0, |a| {
                a.mov(rax, 0x8000_0000_0000u64)?;
                a.jmp(rax)
            }),
            ("x87 exception", 16, 0, MF),
            ("SSE exception", 19, 0, XM),
        ],
    );
}

#[test]
fn programs_are_stopped() {
    raises(
        true,
        &[
            ("HLT", 13, 0, |a| a.hlt()),
            ("CLI", 13, 0, |a| a.cli()),
            ("IN", 13, 0, |a| a.in_(al, 0x60)),
            ("OUT", 13, 0, |a| a.out(0x80, al)),
            ("INS", 13, 0, |a| {
                a.mov(edi, DATA as u32)?;
                a.mov(dx, 0x60)?;
                a.insb()
            }),
            ("RDMSR", 13, 0, |a| a.rdmsr()),
            ("WRMSR", 13, 0, |a| a.wrmsr()),
            ("MOV from CR0", 13, 0, |a| a.mov(rax, cr0)),
            ("MOV to CR3", 13, 0, |a| a.mov(cr3, rax)),
            ("MOV from CR8", 13, 0, |a| a.mov(rax, cr8)),
            ("MOV to DR7", 13, 0, |a| a.mov(dr7, rax)),
            ("LGDT", 13, 0, |a| a.lgdt(fword_ptr(DATA))),
            ("LIDT", 13, 0, |a| a.lidt(fword_ptr(DATA))),
            ("LTR", 13, 0, |a| a.ltr(ax)),
            ("LLDT", 13, 0, |a| a.lldt(ax)),
            ("LMSW", 13, 0, |a| a.lmsw(ax)),
            ("CLTS", 13, 0, |a| a.clts()),
            ("INVLPG", 13, 0, |a| a.invlpg(byte_ptr(DATA))),
            ("WBINVD", 13, 0, |a| a.wbinvd()),
            ("SWAPGS", 13, 0, |a| a.swapgs()),
            ("SYSRET without EFER.SCE", 6, 0, |a| {
                a.mov(rcx, r15)?;
                a.sysretq()
            }),
            ("gate of privilege level 0", 13, 6 << 3 | 2, |a| a.int(6)),
            ("INT3, whose gate is open", 3, 0, |a| a.int3()),
            ("UD2", 6, 0, |a| a.ud2()),
            ("division by zero", 0, 0, |a| {
                a.xor(ecx, ecx)?;
                a.div(ecx)
            }),
            ("kernel's data", 13, u32::from(DATA32), |a| {
                a.mov(eax, i32::from(DATA32))?;
                a.mov(ds, eax)
            }),
            ("kernel's code", 13, u32::from(CODE64), |a| {
                a.push(i32::from(CODE64))?;
                a.push(0)?;
                a.db(&[0x48, 0xcb])
            }),
            ("x87 exception", 16, 0, MF),
            ("SSE exception", 19, 0, XM),
        ],
    );
}

/// Alignment is checked at privilege level 3, where CR0.AM and RFLAGS.AC ask for it.
#[test]
fn alignment_is_checked_on_request() {
    for (am, ac, expected) in [(true, true, true), (true, false, false), (false, true, false)] {
        let program = |a: &mut Asm| {
            a.mov(rax, cr0)?;
            a.and(eax, !(1 << 18))?;
            if am {
                a.or(eax, 1 << 18)?;
            }
            a.mov(cr0, rax)?;
            to_user(a)?;
            caught(a, |a| {
                if ac {
                    a.pushfq()?;
                    a.or(dword_ptr(rsp), 1 << 18)?;
                    a.popfq()?;
                }
                a.mov(eax, dword_ptr(DATA + 2))?;
                a.mov(eax, dword_ptr(DATA + 4))?;
                a.ud2()
            })?;
            a.done()
        };
        let emulation = (!am).then_some("it checks alignment without CR0.AM, too");
        Scenario { emulation, ..Scenario::new() }.run(program, |run| {
            let seen: Vec<_> = run.caught.iter().map(|c| (c.vector, c.error)).collect();
            assert_eq!(seen, [(if expected { 17 } else { 6 }, 0)], "{}: AM {am}, AC {ac}", run.engine);
        });
    }
}

/// The I/O permission map lets programs use some ports.
#[test]
fn the_permission_map_opens_ports() {
    let open = |machine: &mut Machine| {
        machine.write(TSS + 0x66, &0x68u16.to_le_bytes());
        // Ports 0x80 and 0x81 are open, all others up to 0x9f are not.
        let mut map = [0xff; 21];
        map[16] = 0xfc;
        machine.write(TSS + 0x68, &map);
        let mut sregs = machine.vcpu.sregs().unwrap();
        sregs.tr.limit = 0x68 + 20;
        machine.vcpu.set_sregs(&sregs).unwrap();
    };
    let program = |a: &mut Asm| {
        to_user(a)?;
        a.out(0x80, al)?;
        a.out(0x80, ax)?;
        caught(a, |a| a.out(0x81, ax))?;
        to_user(a)?;
        caught(a, |a| a.in_(al, 0x9f))?;
        a.done()
    };
    Scenario { prepare: &open, ..Scenario::new() }.run(program, |run| {
        let seen: Vec<_> = run.caught.iter().map(|c| (c.vector, c.error)).collect();
        assert_eq!(seen, [(13, 0); 2]);
        assert_eq!(run.events.len(), 2, "{:?}", run.events);
    });
}

#[test]
fn double_faults_use_their_own_stack() {
    let program = |a: &mut Asm| {
        // The page-fault gate is not present.
        a.mov(byte_ptr(IDT + 14 * 16 + 5), 0x0e)?;
        caught(a, |a| a.mov(eax, dword_ptr(0x7000_0000_0000u64)))?;
        a.done()
    };
    same_everywhere(&VmConfig::default(), program, |run| {
        let seen: Vec<_> = run.caught.iter().map(|c| (c.vector, c.error)).collect();
        assert_eq!(seen, [(8, 0)]);
    });
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const NX: u64 = 1 << 63;
/// A bit that is reserved in a 4 KiB page's entry on any processor with less than 52 address bits.
const RESERVED: u64 = 1 << 51;
/// Where the test page is mapped, and its tables.
const PAGE: u64 = 0x4000_0000;
const TABLE: u64 = 0x4_0000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Read,
    Write,
    Fetch,
}

/// What SDM vol. 3 §4.6 and §4.7 say of an access: `None`, or the error code.
fn expected(entry: u64, access: Access, user: bool, (wp, smep, smap): (bool, bool, bool)) -> Option<u32> {
    let code = |bits: u32| {
        let write = if access == Access::Write { 2 } else { 0 };
        // Bit 4 tells fetches only where NX or SMEP is in use.
        let fetch = if access == Access::Fetch { 16 } else { 0 };
        Some(bits | write | fetch | if user { 4 } else { 0 })
    };
    if entry & P == 0 {
        return code(0);
    }
    if entry & RESERVED != 0 {
        return code(1 | 8);
    }
    let for_users = entry & U != 0;
    let forbidden = match access {
        _ if user && !for_users => true,
        Access::Fetch => entry & NX != 0 || !user && for_users && smep,
        _ if !user && for_users && smap => true,
        Access::Write => entry & W == 0 && (user || wp),
        Access::Read => false,
    };
    if forbidden { code(1) } else { None }
}

/// Every combination of entry, access, privilege and CR0.WP; with SMEP and SMAP where the processor has them.
#[test]
fn page_faults_have_the_error_code_of_the_manual() {
    let config = VmConfig { cpu: Some(CpuModel::max()), ..VmConfig::default() };
    let entries = [0, P, P | W, P | U, P | W | U, P | W | U | NX, P | W | NX, P | W | U | RESERVED];
    for entry in entries {
        for access in [Access::Read, Access::Write, Access::Fetch] {
            for (user, wp, cr4_bits) in [
                (true, true, 0),
                (false, true, 0),
                (false, false, 0),
                (false, true, 1 << 20),
                (false, true, 1 << 21),
            ] {
                page_fault(&config, entry, access, user, wp, cr4_bits);
            }
        }
    }
}

fn page_fault(config: &VmConfig, entry: u64, access: Access, user: bool, wp: bool, cr4_bits: u64) {
    let (smep, smap) = (cr4_bits >> 20 & 1 != 0, cr4_bits >> 21 & 1 != 0);
    let expected = expected(entry, access, user, (wp, smep, smap));
    let prepare = |machine: &mut Machine| {
        machine.write_u64(PD + (PAGE >> 21) * 8, TABLE | P | W | U);
        machine.write_u64(TABLE, if entry == 0 { 0 } else { DATA | entry });
        machine.write(DATA, &[0x90, 0x0f, 0x0b]); // nop; ud2
        // The code that runs may be a program's, but SMEP and SMAP forbid the kernel what is for users.
        if !user {
            for low in 0..4 {
                machine.write_u64(PD + 8 * low, low << 21 | 0x83);
            }
        }
        let mut sregs = machine.vcpu.sregs().unwrap();
        sregs.efer |= 1 << 11;
        sregs.cr4 |= cr4_bits;
        sregs.cr0 = sregs.cr0 & !(1 << 16) | u64::from(wp) << 16;
        machine.vcpu.set_sregs(&sregs).unwrap();
    };
    let program = |a: &mut Asm| {
        if user {
            to_user(a)?;
        }
        caught(a, |a| {
            a.mov(ebx, PAGE as u32)?;
            match access {
                Access::Read => a.mov(eax, dword_ptr(rbx))?,
                Access::Write => a.mov(dword_ptr(rbx + 8), eax)?,
                Access::Fetch => a.jmp(rbx)?,
            }
            a.ud2()
        })?;
        a.done()
    };
    let smap_alone = smap && !smep && access == Access::Fetch && entry & (P | U | RESERVED | NX) == P | U;
    let emulation = smap_alone.then_some("SMAP forbids it fetches, too");
    Scenario { config, prepare: &prepare, emulation }.run(program, |run| {
        let seen: Vec<_> = run.caught.iter().map(|c| (c.vector, c.error)).collect();
        let what =
            format!("{}: entry {entry:#x}, {access:?}, user {user}, WP {wp}, CR4 {cr4_bits:#x}", run.engine);
        assert_eq!(seen, [expected.map_or((6, 0), |code| (14, code))], "{what}");
        if expected.is_some() {
            let at = PAGE as u32 + if access == Access::Write { 8 } else { 0 };
            assert_eq!(run.caught[0].address, Some(at), "{what}");
        }
    });
}
