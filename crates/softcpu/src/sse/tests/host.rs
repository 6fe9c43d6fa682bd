//! Runs one instruction on the host processor.
#![allow(unsafe_code)]

use std::sync::Once;

use iced_x86::code_asm::*;
use iced_x86::{Code, Encoder, Instruction, Register};

macro_rules! field {
    ($name:ident) => {
        std::mem::offset_of!(State, $name) as i32
    };
}

/// The registers that an instruction under test may use. XMM1 and MM1 are its destination, XMM2 and MM2 its
/// source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct State {
    pub xmm: [[u8; 16]; 3],
    /// The memory operand; RDI points here.
    pub memory: [u8; 16],
    pub mm: [u64; 3],
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rflags: u64,
    pub mxcsr: u32,
    /// Whether the instruction raised #XM (SIGFPE).
    pub faulted: u32,
    outside_mxcsr: u32,
    landing: u64,
}

/// Arithmetic flags: OF, SF, ZF, AF, PF, CF.
pub const FLAGS: u64 = 0x8d5;
/// Where the memory operand is from RBX.
pub const MEMORY: i32 = field!(memory);
/// All exceptions masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

impl Default for State {
    fn default() -> Self {
        Self {
            xmm: [[0; 16]; 3],
            memory: [0; 16],
            mm: [0; 3],
            rax: 0,
            rcx: 0,
            rdx: 0,
            rflags: FLAGS,
            mxcsr: MXCSR_DEFAULT,
            faulted: 0,
            outside_mxcsr: 0,
            landing: 0,
        }
    }
}

/// The instruction with these operands.
pub fn instruction(code: Code, operands: &[Operand]) -> Instruction {
    let mut i = Instruction::default();
    i.set_code(code);
    for (n, operand) in operands.iter().enumerate() {
        let n = n as u32;
        match operand {
            Operand::Reg(r) => {
                i.set_op_kind(n, iced_x86::OpKind::Register);
                i.set_op_register(n, *r);
            }
            Operand::Imm(v) => {
                i.set_op_kind(n, iced_x86::OpKind::Immediate8);
                i.set_immediate8(*v);
            }
            Operand::Memory => {
                i.set_op_kind(n, iced_x86::OpKind::Memory);
                i.set_memory_base(Register::RBX);
                i.set_memory_displacement64(MEMORY as u64);
                i.set_memory_displ_size(8);
            }
            Operand::Rdi => i.set_op_kind(n, iced_x86::OpKind::MemorySegRDI),
        }
    }
    i
}

#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Reg(Register),
    Imm(u8),
    Memory,
    /// The implicit operand of the masked stores.
    Rdi,
}

/// A page of host code around one instruction.
pub struct Host {
    page: *mut libc::c_void,
    landing: u64,
}

const PAGE: usize = 4096;

impl Host {
    pub fn new(instruction: &Instruction) -> Self {
        install_handler();
        let mut encoder = Encoder::new(64);
        let len = encoder
            .encode(instruction, 0x1000)
            .unwrap_or_else(|e| panic!("{:?} does not encode: {e}", instruction.code()));
        let bytes = encoder.take_buffer();
        assert_eq!(len, bytes.len());
        let (code, landing) = assemble(&bytes).unwrap();
        assert!(code.len() < PAGE);
        // SAFETY: a fresh private mapping, released on drop; the code fits into it.
        let page = unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast(), code.len());
            page
        };
        Self { page, landing: page as u64 + landing as u64 }
    }

    pub fn run(&self, state: &State) -> State {
        let mut state = *state;
        state.landing = self.landing;
        // SAFETY: the page holds a function of this signature, which keeps to the System V ABI.
        unsafe {
            let run: extern "sysv64" fn(*mut State) = std::mem::transmute(self.page);
            run(&mut state);
        }
        state.landing = 0;
        state.outside_mxcsr = 0;
        state
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody else has it.
        unsafe { libc::munmap(self.page, PAGE) };
    }
}

/// Loads the state, runs the instruction, stores the state. Gives the code and the offset of what follows
/// the instruction.
fn assemble(instruction: &[u8]) -> Result<(Vec<u8>, usize), iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let xmm_at = |n: i32| xmmword_ptr(rbx + (field!(xmm) + 16 * n));
    let mm_at = |n: i32| qword_ptr(rbx + (field!(mm) + 8 * n));
    a.push(rbx)?;
    a.push(r12)?;
    a.mov(rbx, rdi)?;
    a.xor(r12d, r12d)?;
    a.stmxcsr(dword_ptr(rbx + field!(outside_mxcsr)))?;
    a.movups(xmm0, xmm_at(0))?;
    a.movups(xmm1, xmm_at(1))?;
    a.movups(xmm2, xmm_at(2))?;
    a.movq(mm0, mm_at(0))?;
    a.movq(mm1, mm_at(1))?;
    a.movq(mm2, mm_at(2))?;
    a.mov(rax, qword_ptr(rbx + field!(rax)))?;
    a.mov(rcx, qword_ptr(rbx + field!(rcx)))?;
    a.mov(rdx, qword_ptr(rbx + field!(rdx)))?;
    a.lea(rdi, xmmword_ptr(rbx + MEMORY))?;
    a.push(qword_ptr(rbx + field!(rflags)))?;
    a.popfq()?;
    a.ldmxcsr(dword_ptr(rbx + field!(mxcsr)))?;
    a.db(instruction)?;
    let mut landing = a.create_label();
    a.set_label(&mut landing)?;
    a.stmxcsr(dword_ptr(rbx + field!(mxcsr)))?;
    a.ldmxcsr(dword_ptr(rbx + field!(outside_mxcsr)))?;
    a.pushfq()?;
    a.pop(qword_ptr(rbx + field!(rflags)))?;
    a.mov(dword_ptr(rbx + field!(faulted)), r12d)?;
    a.mov(qword_ptr(rbx + field!(rax)), rax)?;
    a.mov(qword_ptr(rbx + field!(rcx)), rcx)?;
    a.mov(qword_ptr(rbx + field!(rdx)), rdx)?;
    a.movups(xmm_at(0), xmm0)?;
    a.movups(xmm_at(1), xmm1)?;
    a.movups(xmm_at(2), xmm2)?;
    a.movq(mm_at(0), mm0)?;
    a.movq(mm_at(1), mm1)?;
    a.movq(mm_at(2), mm2)?;
    a.emms()?;
    a.pop(r12)?;
    a.pop(rbx)?;
    a.ret()?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(0x1000, options)?;
    let at = result.label_ip(&landing)? - 0x1000;
    Ok((result.inner.code_buffer, at as usize))
}

/// On SIGFPE: skip to the landing, with R12 set and the exceptions masked.
fn install_handler() {
    extern "C" fn on_fpe(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a ucontext; RBX of the interrupted code is its `State`, as only code
        // from `assemble` runs with exceptions unmasked.
        unsafe {
            let context = &mut *context.cast::<libc::ucontext_t>();
            let gregs = &mut context.uc_mcontext.gregs;
            let state = gregs[libc::REG_RBX as usize] as *const State;
            gregs[libc::REG_RIP as usize] = (*state).landing as i64;
            gregs[libc::REG_R12 as usize] = 1;
            (*context.uc_mcontext.fpregs).mxcsr |= MXCSR_DEFAULT;
        }
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler touches nothing but its arguments.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fpe as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut()), 0);
        }
    });
}

#[test]
fn an_unmasked_exception_is_caught() {
    let i =
        instruction(Code::Divps_xmm_xmmm128, &[Operand::Reg(Register::XMM1), Operand::Reg(Register::XMM2)]);
    let host = Host::new(&i);
    let mut state = State::default();
    state.xmm[1] = [0x3f; 16];
    state.mxcsr = MXCSR_DEFAULT & !0x200;
    let after = host.run(&state);
    assert_eq!(after.faulted, 1);
    assert_eq!(after.mxcsr & 0x3f, 4);
    assert_eq!(after.xmm[1], [0x3f; 16]);
}
