//! Runs random scripts on both machines and says where they first differ.

use std::fmt::Debug;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::machine::{Log, Machine};

/// Environment variable: how many times the usual number of scripts to run.
const EFFORT: &str = "TRAPLINE_DIFF_EFFORT";
/// Environment variable: a number that makes other scripts.
const SEED: &str = "TRAPLINE_DIFF_SEED";

fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |value| value.parse().expect("a number"))
}

/// Runs `cases` scripts of `steps`, each on a fresh pair of machines, and shrinks the first that they
/// disagree on. `perform` carries out a step and notes what it sees; `S` is what it remembers of a machine
/// between steps.
pub fn run<T: Debug, S: Default>(
    cases: u32,
    steps: impl Strategy<Value = Vec<T>>,
    machines: impl Fn() -> (Box<dyn Machine>, Box<dyn Machine>),
    perform: impl Fn(&mut dyn Machine, &mut S, &T, &mut Log),
) {
    check(cases, steps, |script| {
        let (mut ours, mut qemu) = machines();
        let (mut our_state, mut qemu_state) = (S::default(), S::default());
        for (i, step) in script.iter().enumerate() {
            let (mut here, mut there) = (Log::default(), Log::default());
            perform(&mut *ours, &mut our_state, step, &mut here);
            perform(&mut *qemu, &mut qemu_state, step, &mut there);
            if here != there {
                return Err(format!("step {i}:\n{}", first_difference(&here, &there)));
            }
        }
        Ok(())
    });
}

/// Runs `cases` scripts of `steps`, and shrinks the first for which `run` says what is wrong.
pub fn check<T: Debug>(
    cases: u32,
    steps: impl Strategy<Value = Vec<T>>,
    run: impl Fn(&[T]) -> Result<(), String>,
) {
    let seed = number(SEED, 1);
    let config = Config {
        cases: cases * number(EFFORT, 1),
        max_shrink_iters: 200,
        max_shrink_time: 40_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(&steps, |script| run(&script).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(why, script)) => {
            let script: String =
                script.iter().enumerate().map(|(i, step)| format!("{i}: {step:x?}\n")).collect();
            panic!("with {SEED}={seed}, this script:\n{script}{why}");
        }
        Err(error) => panic!("with {SEED}={seed}: {error}"),
    }
}

/// The first thing seen that differs, and what was seen before.
fn first_difference(ours: &Log, qemu: &Log) -> String {
    let same = ours.0.iter().zip(&qemu.0).take_while(|(a, b)| a == b).count();
    let before = ours.0.iter().take(same).skip(same.saturating_sub(40));
    let before: String = before.map(|seen| format!("  both {seen:?}\n")).collect();
    let rest = |log: &Log| log.0.iter().skip(same).take(12).copied().collect::<Vec<_>>();
    format!("{before}  ours {:?}\n  qemu {:?}", rest(ours), rest(qemu))
}
