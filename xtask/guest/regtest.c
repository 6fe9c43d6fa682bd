// regtest: runs pieces of machine code as a user program, each in a process of its own, up to their first
// HLT, and compares the registers with what was expected. Static; runs in a guest and on the host alike.
//
//   regtest PACK          one line a test: PASS, tab, name; or FAIL, tab, name, tab, why
//
// PACK is written by `cargo xtask conformance fex`; its layout is in struct reader's users below, all
// little-endian: u32 count, then for each test name, mode (32 or 64), code, regions, memory, registers.
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { REGISTERS = 43, FIRST_XMM = 17, FIRST_MM = 35, SECONDS = 60 };
#define CODE 0x10000ull
#define PAGES(bytes) (((bytes) + 4095) & ~4095ull)

// What a test has left behind, shared with the process that started it.
struct outcome {
    uint64_t words[REGISTERS][2];
    int signal; // 0: no handler was reached
    int halted; // it was a HLT that raised it
};

struct reader {
    const uint8_t *at;
};

static uint32_t u32(struct reader *r) {
    uint32_t v;
    memcpy(&v, r->at, 4);
    r->at += 4;
    return v;
}

static uint64_t u64(struct reader *r) {
    uint64_t v;
    memcpy(&v, r->at, 8);
    r->at += 8;
    return v;
}

static struct outcome *outcome;

static long raw(long n, long a, long b, long c) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return r;
}

// The test may have left any FS base: nothing here may use thread-local storage.
static void on_signal(int number, siginfo_t *info, void *context) {
    (void)info;
    static const int order[] = {REG_RIP, REG_RAX, REG_RBX, REG_RCX, REG_RDX, REG_RSI, REG_RDI, REG_RBP, REG_RSP,
                                REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;
    for (int i = 0; i < FIRST_XMM; i++) outcome->words[i][0] = m->gregs[order[i]];
    for (int i = 0; i < 16; i++) {
        const uint32_t *x = m->fpregs->_xmm[i].element;
        for (int h = 0; h < 2; h++) outcome->words[FIRST_XMM + i][h] = x[2 * h] | (uint64_t)x[2 * h + 1] << 32;
    }
    int top = m->fpregs->swd >> 11 & 7;
    for (int i = 0; i < 8; i++) {
        const uint16_t *s = m->fpregs->_st[i].significand;
        uint64_t *to = outcome->words[FIRST_MM + ((i + top) & 7)];
        to[0] = s[0] | (uint64_t)s[1] << 16 | (uint64_t)s[2] << 32 | (uint64_t)s[3] << 48;
        to[1] = m->fpregs->_st[i].exponent;
    }
    outcome->signal = number;
    outcome->halted = number == SIGSEGV && *(const uint8_t *)m->gregs[REG_RIP] == 0xf4;
    raw(SYS_exit_group, 0, 0, 0);
}

static void need(int ok, const char *what) {
    if (!ok) {
        perror(what);
        _exit(2);
    }
}

static void map(uint64_t at, uint64_t bytes) {
    void *p = mmap((void *)at, PAGES(bytes), PROT_READ | PROT_WRITE | PROT_EXEC,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    need(p == (void *)at, "mmap");
}

// 32-bit code, data and stack segments that span everything: selectors 0xf, 0x17 and 0x1f.
static void segments(void) {
    for (int i = 1; i <= 3; i++) {
        struct user_desc d = {.entry_number = i, .limit = 0xfffff, .seg_32bit = 1, .limit_in_pages = 1, .useable = 1};
        d.contents = i == 1 ? MODIFY_LDT_CONTENTS_CODE : MODIFY_LDT_CONTENTS_DATA;
        need(!syscall(SYS_modify_ldt, 0x11, &d, sizeof d), "modify_ldt");
    }
}

// Enters the test with every register zero. Where it begins is read from memory: no register is left over.
static void enter(int mode) {
    static const uint64_t code = CODE;
    static const struct {
        uint32_t offset;
        uint16_t selector;
    } __attribute__((packed)) code32 = {CODE, 0xf};
    static const uint32_t mxcsr = 0x1f80;
    __asm__ volatile("cmp $32,%0\n"
                     "ldmxcsr %1\n"
                     "fninit\n"
                     ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n pxor %%xmm\\n,%%xmm\\n\n .endr\n"
                     ".irp r,rax,rbx,rcx,rdx,rsi,rdi,rbp,r8,r9,r10,r11,r12,r13,r14,r15\n mov $0,%%\\r\n .endr\n"
                     "je 1f\n"
                     "push $0x202\n popfq\n mov $0,%%esp\n jmp *%2\n"
                     "1: push $0x202\n popfq\n mov $0xc0001000,%%esp\n ljmp *%3\n"
                     :
                     : "r"(mode), "m"(mxcsr), "m"(code), "m"(code32)
                     : "memory");
    __builtin_unreachable();
}

// Runs one test; does not come back.
static void run(struct reader r, int mode) {
    static uint8_t stack[65536];
    stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
    sigaltstack(&alternate, 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static const int signals[] = {SIGSEGV, SIGILL, SIGFPE, SIGBUS, SIGTRAP};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &action, 0);
    alarm(SECONDS);

    // Where tests keep data without asking for it.
    map(0xe0000000, 10 * 4096);
    map(0xe8000000 - 4096, 2 * 4096);
    uint32_t bytes = u32(&r);
    map(CODE, bytes + 1);
    memcpy((void *)CODE, r.at, bytes);
    r.at += bytes;
    for (uint32_t n = u32(&r); n; n--) {
        uint64_t at = u64(&r);
        map(at, u64(&r));
    }
    if (mode == 32) {
        map(0xc0000000, 4096);
        segments();
    }
    for (uint32_t n = u32(&r); n; n--) {
        uint64_t at = u64(&r);
        uint32_t length = u32(&r);
        memcpy((void *)at, r.at, length);
        r.at += length;
    }
    enter(mode);
}

static const char *name_of(int i) {
    static const char *const general[] = {"RIP", "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP",
                                          "R8",  "R9",  "R10", "R11", "R12", "R13", "R14", "R15"};
    static char text[8];
    if (i < FIRST_XMM) return general[i];
    snprintf(text, sizeof text, i < FIRST_MM ? "XMM%d" : "MM%d", i - (i < FIRST_MM ? FIRST_XMM : FIRST_MM));
    return text;
}

// Compares the registers that the test names; prints the verdict.
static void judge(const char *name, int status, struct reader r) {
    if (!outcome->signal || !outcome->halted) {
        if (WIFSIGNALED(status)) printf("FAIL\t%s\tended by signal %d\n", name, WTERMSIG(status));
        else if (outcome->signal) printf("FAIL\t%s\tsignal %d at %#lx\n", name, outcome->signal, outcome->words[0][0]);
        else printf("FAIL\t%s\texit status %d\n", name, WEXITSTATUS(status));
        return;
    }
    char why[400] = "";
    for (uint32_t n = u32(&r); n; n--) {
        uint32_t i = u32(&r), words = u32(&r);
        for (uint32_t w = 0; w < words; w++) {
            uint64_t wanted = u64(&r);
            if (i >= REGISTERS || w >= 2) continue;
            uint64_t got = outcome->words[i][w];
            size_t used = strlen(why);
            if (got != wanted)
                snprintf(why + used, sizeof why - used, " %s[%u] %#lx not %#lx", name_of(i), w, got, wanted);
        }
    }
    if (*why) printf("FAIL\t%s\t%s\n", name, why + 1);
    else printf("PASS\t%s\n", name);
}

int main(int count, char **arguments) {
    need(count == 2, "usage: regtest PACK");
    int file = open(arguments[1], O_RDONLY);
    struct stat about;
    need(file >= 0 && !fstat(file, &about), arguments[1]);
    uint8_t *pack = mmap(0, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    outcome = mmap(0, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(pack != MAP_FAILED && outcome != MAP_FAILED, "mmap");
    struct reader r = {pack};
    for (uint32_t tests = u32(&r); tests; tests--) {
        uint32_t length = u32(&r), test_bytes = u32(&r);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)length, (const char *)r.at);
        r.at += length;
        struct reader test = {r.at}, expected = {r.at + test_bytes};
        r.at += test_bytes;
        uint32_t expected_bytes = u32(&r);
        expected.at += 4;
        r.at += expected_bytes;
        int mode = u32(&test), status = 0;
        memset(outcome, 0, sizeof *outcome);
        fflush(stdout);
        pid_t child = fork();
        if (!child) run(test, mode);
        waitpid(child, &status, 0);
        judge(name, status, expected);
    }
    printf("@@END\n");
    return 0;
}
