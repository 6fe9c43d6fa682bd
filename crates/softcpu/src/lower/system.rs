//! System instructions.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::int::is_mem;
use super::string::string_address_size;
use super::{Lowering, Next, reg, segment, width};
use crate::cpu::seg;
use crate::op::{Handler, Op};
use crate::ops::flow::nop;
use crate::ops::system::{REGISTER, SIZE_SHIFT, calls, control, io, misc, segments, tables, vmx, xcr};
use crate::vmx::reason;

pub(crate) fn lower(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    match i.mnemonic() {
        M::Mov => mov(l, i),
        M::Push | M::Pop => stack(l, i),
        M::In | M::Out => port(l, i),
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => port_string(l, i),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => load_pointer(l, i),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => base(l, i),
        _ => plain(l, i).or_else(|| with_operand(l, i)),
    }
}

/// log2 of an operand size, in its place in `Op::aux`.
fn size_bits(bytes: usize) -> u16 {
    (bytes.trailing_zeros() as u16 & 3) << SIZE_SHIFT
}

/// Instructions without an operand that the handler looks at.
fn plain(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let (run, aux, end): (Handler, u16, bool) = match i.mnemonic() {
        M::Clts => (control::clts, 0, true),
        M::Swapgs => (segments::swapgs, 0, false),
        M::Syscall => (calls::syscall, 0, true),
        M::Sysret => (calls::sysret, 0, true),
        M::Sysretq => (calls::sysret, 1, true),
        M::Sysenter => (calls::sysenter, 0, true),
        M::Sysexit => (calls::sysexit, 0, true),
        M::Sysexitq => (calls::sysexit, 1, true),
        M::Cpuid => (misc::cpuid, 0, false),
        M::Rdtsc => (misc::rdtsc, 0, false),
        M::Rdtscp => (misc::rdtscp, 0, false),
        M::Rdpmc => (misc::rdpmc, 0, false),
        M::Rdmsr => (misc::rdmsr, 0, false),
        M::Wrmsr => (misc::wrmsr, 0, false),
        M::Xgetbv => (xcr::xgetbv, 0, false),
        M::Xsetbv => (xcr::xsetbv, 0, false),
        M::Rdpkru => (xcr::rdpkru, 0, false),
        M::Wrpkru => (xcr::wrpkru, 0, false),
        M::Hlt => (misc::hlt, 0, true),
        M::Pause => (misc::pause, 0, false),
        M::Invd => (misc::invd, 0, false),
        M::Wbinvd | M::Wbnoinvd => (misc::wbinvd, 0, false),
        M::Clac => (misc::access_flag, 0, false),
        M::Stac => (misc::access_flag, 1, false),
        M::Vmcall => (vmx::vmcall, 0, true),
        M::Vmlaunch => (vmx::instruction, reason::VMLAUNCH, true),
        M::Vmresume => (vmx::instruction, reason::VMRESUME, true),
        M::Vmxoff => (vmx::instruction, reason::VMXOFF, true),
        // No-operations where the feature is absent.
        M::Rdsspd | M::Rdsspq | M::Cldemote | M::Prefetchit0 | M::Prefetchit1 => (nop, 0, false),
        _ => return None,
    };
    let mut op = l.op(run);
    op.aux = aux;
    l.push(op);
    Some(if end { Next::End } else { Next::Continue })
}

/// Fills in the operand that may be in memory: number `n`.
fn fill(l: &Lowering<'_>, i: &Instruction, op: &mut Op, n: u32) {
    if is_mem(i, n) {
        // The handlers take every form of address.
        let _ = l.mem(i, op);
    } else {
        op.aux |= REGISTER;
    }
}

/// Instructions with one operand in a register or memory.
fn with_operand(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let table = |i: &Instruction| match i.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 2,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    };
    // Handler, `aux`, operand size, which operand may be in memory, whether the block ends.
    let (run, aux, size, n, end): (Handler, u16, usize, u32, bool) = match i.mnemonic() {
        M::Lgdt => (tables::load_table, 0, table(i), 0, false),
        M::Lidt => (tables::load_table, 1, table(i), 0, false),
        M::Sgdt => (tables::store_table, 0, table(i), 0, false),
        M::Sidt => (tables::store_table, 1, table(i), 0, false),
        M::Lldt => (tables::lldt, 0, 2, 0, false),
        M::Ltr => (tables::ltr, 0, 2, 0, false),
        M::Sldt => (tables::store_segment, 0, width(i, 0), 0, false),
        M::Str => (tables::store_segment, 1, width(i, 0), 0, false),
        M::Lar => (tables::lar, 0, i.op0_register().size(), 1, false),
        M::Lsl => (tables::lsl, 0, i.op0_register().size(), 1, false),
        M::Verr => (tables::verify, 0, 2, 0, false),
        M::Verw => (tables::verify, 1, 2, 0, false),
        M::Arpl => (tables::arpl, 0, 2, 0, false),
        M::Lmsw => (control::lmsw, 0, 2, 0, true),
        M::Smsw => (control::smsw, 0, width(i, 0), 0, false),
        M::Invlpg => (misc::invlpg, 0, 2, 0, true),
        M::Invpcid => (misc::invpcid, 0, 8, 1, true),
        M::Clflush | M::Clflushopt | M::Clwb => (misc::clflush, 0, 2, 0, false),
        M::Rdrand => (misc::rdrand, 0, width(i, 0), 0, false),
        M::Rdseed => (misc::rdrand, 1, width(i, 0), 0, false),
        M::Rdpid => (misc::rdpid, 0, 8, 0, false),
        M::Bound => (misc::bound, 0, i.op0_register().size(), 1, false),
        M::Vmclear => (vmx::instruction, reason::VMCLEAR, 8, 0, true),
        M::Vmptrld => (vmx::instruction, reason::VMPTRLD, 8, 0, true),
        M::Vmptrst => (vmx::instruction, reason::VMPTRST, 8, 0, true),
        M::Vmxon => (vmx::instruction, reason::VMXON, 8, 0, true),
        M::Vmread => (vmx::instruction, reason::VMREAD, i.op1_register().size(), 0, true),
        M::Vmwrite => (vmx::instruction, reason::VMWRITE, i.op0_register().size(), 1, true),
        M::Invept => (vmx::instruction, reason::INVEPT, i.op0_register().size(), 1, true),
        M::Invvpid => (vmx::instruction, reason::INVVPID, i.op0_register().size(), 1, true),
        _ => return None,
    };
    let mut op = l.op(run);
    op.aux = aux | size_bits(size);
    fill(l, i, &mut op, n);
    if i.op0_kind() == OpKind::Register {
        op.r1 = reg(i.op0_register());
    }
    if i.op_count() > 1 && i.op1_kind() == OpKind::Register {
        op.r2 = reg(i.op1_register());
    }
    l.push(op);
    Some(if end { Next::End } else { Next::Continue })
}

/// MOV with a segment, control or debug register.
fn mov(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let (to, from) = (i.op0_register(), i.op1_register());
    if to.is_segment_register() || from.is_segment_register() {
        return mov_segment(l, i);
    }
    let (special, general, write) =
        if to.is_cr() || to.is_dr() { (to, from, true) } else { (from, to, false) };
    let n = special.number() as u16;
    let (run, end): (Handler, bool) = match (special.is_cr(), write) {
        (true, _) if !matches!(n, 0 | 2 | 3 | 4 | 8) => return None,
        (true, true) => (control::mov_to_cr, true),
        (true, false) => (control::mov_from_cr, false),
        _ if !special.is_dr() || n > 7 => return None,
        (false, true) => (control::mov_to_dr, true),
        (false, false) => (control::mov_from_dr, false),
    };
    let mut op = l.op(run);
    (op.aux, op.r1) = (n, reg(general));
    l.push(op);
    Some(if end { Next::End } else { Next::Continue })
}

fn mov_segment(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let load = i.op0_register().is_segment_register();
    let (s, n) = if load { (i.op0_register(), 1) } else { (i.op1_register(), 0) };
    let s = segment(s);
    let run: Handler = match (load, usize::from(s)) {
        (false, _) => segments::mov_from,
        (true, seg::CS) => return None,
        (true, seg::SS) => segments::mov_to_ss,
        (true, _) => segments::mov_to_data,
    };
    let mut op = l.op(run);
    fill(l, i, &mut op, n);
    if !is_mem(i, n) {
        let r = i.op_register(n);
        op.r1 = reg(r);
        op.aux |= size_bits(r.size());
    }
    op.r2 = s;
    l.push(op);
    Some(if load && usize::from(s) == seg::SS { Next::End } else { Next::Continue })
}

/// PUSH and POP of a segment register.
fn stack(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let s = segment(i.op0_register());
    let bytes = i.stack_pointer_increment().unsigned_abs() as usize;
    let push = i.mnemonic() == Mnemonic::Push;
    let run: Handler = match (push, bytes) {
        (true, 2) => segments::push::<u16>,
        (true, 4) => segments::push::<u32>,
        (true, _) => segments::push::<u64>,
        (false, _) if usize::from(s) == seg::CS => return None,
        (false, _) if usize::from(s) == seg::SS => segments::pop_ss,
        (false, _) => segments::pop_data,
    };
    let mut op = l.op(run);
    (op.r2, op.aux) = (s, size_bits(bytes));
    l.push(op);
    Some(if !push && usize::from(s) == seg::SS { Next::End } else { Next::Continue })
}

fn load_pointer(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let s = match i.mnemonic() {
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        _ => seg::SS,
    };
    let mut op = l.op(segments::load_pointer);
    op.aux = size_bits(i.op0_register().size());
    fill(l, i, &mut op, 1);
    (op.r1, op.r2) = (reg(i.op0_register()), s as u8);
    l.push(op);
    Some(Next::End)
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
fn base(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let (run, s): (Handler, usize) = match i.mnemonic() {
        M::Rdfsbase => (segments::read_base, seg::FS),
        M::Rdgsbase => (segments::read_base, seg::GS),
        M::Wrfsbase => (segments::write_base, seg::FS),
        _ => (segments::write_base, seg::GS),
    };
    let mut op = l.op(run);
    op.aux = size_bits(i.op0_register().size());
    (op.r1, op.r2) = (reg(i.op0_register()), s as u8);
    l.push(op);
    Some(Next::Continue)
}

/// IN and OUT.
fn port(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    let input = i.mnemonic() == Mnemonic::In;
    let (data, place) = if input { (0, 1) } else { (1, 0) };
    let run: Handler = match (i.op_register(data), input) {
        (Register::AL, true) => io::input::<u8>,
        (Register::AX, true) => io::input::<u16>,
        (_, true) => io::input::<u32>,
        (Register::AL, false) => io::output::<u8>,
        (Register::AX, false) => io::output::<u16>,
        (_, false) => io::output::<u32>,
    };
    let mut op = l.op(run);
    if i.op_kind(place) == OpKind::Register {
        op.aux = io::DX;
    } else {
        op.imm = u64::from(i.immediate8());
    }
    l.push(op);
    Some(Next::Continue)
}

/// INS and OUTS.
fn port_string(l: &mut Lowering<'_>, i: &Instruction) -> Option<Next> {
    use Mnemonic as M;
    let run: Handler = match i.mnemonic() {
        M::Insb => io::string::<u8, true>,
        M::Insw => io::string::<u16, true>,
        M::Insd => io::string::<u32, true>,
        M::Outsb => io::string::<u8, false>,
        M::Outsw => io::string::<u16, false>,
        _ => io::string::<u32, false>,
    };
    let mut op = l.op(run);
    op.seg = segment(i.memory_segment());
    op.scale = string_address_size(i) << 4;
    if i.has_rep_prefix() || i.has_repne_prefix() {
        op.aux = io::REP;
    }
    l.push(op);
    Some(Next::Continue)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Code, Decoder, Instruction};

    use crate::cpuid::Model;
    use crate::lower::{Lowering, lower_one};

    /// What is advertised works: of any bytes, an instruction that the model supports has operations. (But
    /// for those that are there to be undefined, RSM outside SMM, and VMFUNC without functions.)
    #[test]
    fn every_advertised_instruction_is_lowered() {
        let model = Model::max();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut bytes = vec![0u8; 600_000];
        for b in &mut bytes {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *b = (random >> 32) as u8;
        }
        for (bits, key) in [(16, 0), (32, 1), (64, 2)] {
            let mut decoder = Decoder::with_ip(bits, &bytes, 0x100, model.decoder_options());
            let mut i = Instruction::default();
            let mut ops = Vec::new();
            let mut known = 0;
            while decoder.can_decode() {
                decoder.decode_out(&mut i);
                if i.is_invalid() || !model.supports(&i) || undefined(&i) {
                    continue;
                }
                ops.clear();
                let start = i.ip();
                let mut l = Lowering {
                    model: &model,
                    bits,
                    key,
                    start,
                    lin: start,
                    off: 0,
                    len: i.len() as u8,
                    nth: 0,
                    previous: None,
                    pure: false,
                    quiet: None,
                    bytes: &bytes[(start - 0x100) as usize..],
                    ops: &mut ops,
                };
                assert!(lower_one(&mut l, &i).is_some(), "{bits}: {i} ({:?})", i.code());
                assert!(!ops.is_empty(), "{i}");
                known += 1;
            }
            assert!(known > 100_000, "{bits}: {known}");
        }
    }

    fn undefined(i: &Instruction) -> bool {
        use Code as C;
        matches!(
            i.code(),
            C::Ud2
                | C::Ud0
                | C::Ud0_r16_rm16
                | C::Ud0_r32_rm32
                | C::Ud0_r64_rm64
                | C::Ud1_r16_rm16
                | C::Ud1_r32_rm32
                | C::Ud1_r64_rm64
                | C::Rsm
                | C::Vmfunc
        )
    }
}
