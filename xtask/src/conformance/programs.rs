//! QEMU's `tests/tcg` programs for x86: user programs whose output must be that of a real processor.
//!
//! What is right is what they print on the host's own processor; where results are undefined, processors
//! differ too.

use anyhow::{Context, Result, bail};

use super::linux::{self, Output};
use super::report::{Case, End, Report};
use super::{Args, Which};

/// Runs every program in `--suite-dir`. They must be static.
pub fn run(args: &Args) -> Result<Vec<Report>> {
    let folder = &args.suite_dir;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {folder:?}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let content = std::fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
        if content.starts_with(b"\x7fELF")
            && args.only.as_ref().is_none_or(|only| name.contains(only.as_str()))
        {
            files.push((name, content));
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("no program in {folder:?}: expected statically linked executables");
    }
    let commands: Vec<Vec<String>> = files.iter().map(|(name, _)| vec![format!("/files/{name}")]).collect();
    let expected = linux::run(args, &[Which::Host], &files, &commands)?;
    let expected = &expected.first().context("the host ran nothing")?.outputs;
    let emulators: Vec<Which> = args.on.iter().copied().filter(|which| *which != Which::Host).collect();
    let runs = linux::run(args, &emulators, &files, &commands)?;
    let report = |run: linux::Outputs| {
        let each = files.iter().zip(expected).zip(&run.outputs);
        let mut cases: Vec<Case> =
            each.map(|(((name, _), expected), output)| compare(name, expected, output, run.which)).collect();
        if let Some(first) = cases.first_mut() {
            first.seconds = run.seconds;
        }
        Report { emulator: run.which.name(), cases }
    };
    Ok(runs.into_iter().map(report).collect())
}

/// A line is a verdict: it is the host's, or not.
fn compare(name: &str, expected: &Output, output: &Output, which: Which) -> Case {
    let mut case = Case { name: name.into(), ..Case::default() };
    for (n, line) in expected.lines.iter().enumerate() {
        let verdict = format!("line {}: {line}", n + 1);
        match output.lines.get(n) {
            Some(same) if same == line => case.passed.push(verdict),
            other => {
                println!(
                    "{} {name} line {}: {:?} not {line:?}",
                    which.name(),
                    n + 1,
                    other.map_or("", |l| l)
                );
                case.failed.push(verdict);
            }
        }
    }
    if output.status != expected.status {
        case.end = End::Failed(output.status.map_or("incomplete".into(), |status| format!("exit {status}")));
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_compared_one_by_one() {
        let output =
            |lines: &[&str], status| Output { lines: lines.iter().map(|l| l.to_string()).collect(), status };
        let expected = output(&["a", "b", "c"], Some(0));
        let case = compare("x", &expected, &output(&["a", "X"], Some(0)), Which::Qemu);
        assert_eq!((case.passed.len(), case.failed.len(), case.end), (1, 2, End::Done));
        let case = compare("x", &expected, &output(&["a", "b", "c"], Some(139)), Which::Qemu);
        assert_eq!((case.passed.len(), case.end), (3, End::Failed("exit 139".into())));
    }
}
