//! The VMX instructions of a guest: each leaves to the VMM (SDM vol. 3 §26.1.2 and chapter 31). Root operation has
//! no code; there they are calls, see [`crate::vmx`].

use super::operand_information;
use crate::cpu::{Cpu, Stop};
use crate::handler;
use crate::op::Op;
use crate::vmx::reason;

/// `Op::aux`: the exit reason.
const REASON: u16 = 0x3f;

fn vmcall_work(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.nonroot {
        return Err(cpu.instruction_exit(reason::VMCALL, 0, 0));
    }
    Err(cpu.ud())
}
handler!(next: vmcall_work => vmcall);

/// Every VMX instruction but VMCALL. The exit comes before the check of the privilege level.
fn instruction_work(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !cpu.nonroot || !cpu.protected() || cpu.lma() && !cpu.long64 {
        return Err(cpu.ud());
    }
    let reason = op.aux & REASON;
    let (info, qualification) = match reason {
        reason::VMLAUNCH | reason::VMRESUME | reason::VMXOFF => (0, 0),
        _ => {
            let (mut info, displacement) = operand_information(cpu, op);
            if matches!(reason, reason::VMWRITE | reason::INVEPT | reason::INVVPID) {
                // The operand that may be in memory is the second.
                if op.is_register() {
                    info.set_reg1(op.r2 & 15);
                }
                info.set_reg2(op.r1 & 15);
            } else if reason == reason::VMREAD {
                info.set_reg2(op.r2 & 15);
            }
            (info.into_bits(), displacement)
        }
    };
    Err(cpu.instruction_exit(reason, qualification, info))
}
handler!(next: instruction_work => instruction);
