//! A machine saved in mid-run goes on in another one.

use std::time::Duration;

use crate::harness::*;
use trapline_machine::{MachineState, Outcome};

#[test]
fn a_saved_machine_goes_on_elsewhere() {
    on_every_engine(|accel| {
        // Counts timer interrupts and sends one letter for each; 26 in all.
        let guest = |a: &mut iced_x86::code_asm::CodeAssembler| alphabet(a);
        let (mut first, first_output) = machine(accel, None, guest);
        let (remote, watched) = (first.remote(), first_output.clone());
        let stop = std::thread::spawn(move || {
            while watched.text().len() < 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
            remote.quit();
        });
        let ended = first.run().unwrap();
        stop.join().unwrap();
        assert_eq!(ended, Outcome::UserQuit, "{accel}");

        let state = postcard::to_allocvec(&first.save().unwrap()).unwrap();
        let mut memory = vec![0; first.ram().size() as usize];
        first.ram().arena().read_bytes(0, &mut memory).unwrap();
        drop(first);

        let (mut second, second_output) = machine(accel, None, guest);
        second.ram().arena().write_bytes(0, &memory).unwrap();
        second.restore(postcard::from_bytes::<MachineState>(&state).unwrap()).unwrap();
        let ran = finish(second, second_output);
        assert_eq!(ran.outcome, Outcome::DebugExit(26 << 1 | 1), "{accel}");
        let all = first_output.text() + &ran.output;
        assert_eq!(all, "abcdefghijklmnopqrstuvwxyz", "{accel}");
    });
}
