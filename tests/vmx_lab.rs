//! The exits that `examples/vmx_lab.rs` shows.

#[path = "../examples/vmx_lab.rs"]
mod vmx_lab;

use trapline::vmx::exit::BasicReason as R;

#[test]
fn the_lab_shows_its_exits() {
    let exits = vmx_lab::lab().unwrap();
    let reasons: Vec<_> = exits.iter().map(|exit| exit.reason.basic().unwrap()).collect();
    assert_eq!(reasons, [R::Cpuid, R::Io, R::Hlt, R::EptViolation, R::Hlt, R::InvalidGuestState]);
    assert!(exits[5].reason.entry_failure());
    let row = |exit: usize, name: &str| {
        let rows = &exits[exit].rows;
        rows.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone()).unwrap()
    };
    // xor eax, eax: 3 bytes in 16-bit code.
    assert_eq!((row(0, "guest RIP"), row(0, "instruction length")), ("0x1003".into(), "2".into()));
    assert_eq!(row(1, "exit qualification"), "out, port 0x80, 1 byte");
    assert_eq!(row(3, "exit qualification"), "write, not mapped");
    assert_eq!(row(3, "guest-physical address"), "0x20010");
    assert_eq!(row(3, "what softcpu adds"), "0x1234, 2 bytes");
    assert!(row(5, "the check that failed").to_lowercase().contains("rflags"), "{exits:?}");
    let table = exits[0].to_string();
    assert!(table.contains("exit reason") && table.contains("CPUID (0xa)"), "{table}");
}
