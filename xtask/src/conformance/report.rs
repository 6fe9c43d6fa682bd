//! Verdicts of tests, side by side.

use std::fmt;

/// How one test program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// As it should.
    #[default]
    Done,
    /// It did not end in time.
    TimedOut,
    /// It ended early, or with a failure that no verdict names: the exit code.
    Failed(String),
    /// It has nothing to test here.
    Skipped,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Done => write!(out, "ok"),
            End::TimedOut => write!(out, "time-out"),
            End::Failed(how) => write!(out, "{how}"),
            End::Skipped => write!(out, "skipped"),
        }
    }
}

/// The verdicts of one test program.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Verdicts that passed.
    pub passed: Vec<String>,
    /// Verdicts that failed.
    pub failed: Vec<String>,
    /// Verdicts that say "not here".
    pub skipped: usize,
    /// How it ended.
    pub end: End,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// What one emulator made of a suite.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub emulator: &'static str,
    /// In the order they ran.
    pub cases: Vec<Case>,
}

impl Report {
    fn totals(&self) -> [usize; 4] {
        let sum = |count: fn(&Case) -> usize| self.cases.iter().map(count).sum();
        let unfinished = self.cases.iter().filter(|c| matches!(c.end, End::TimedOut | End::Failed(_)));
        [sum(|c| c.passed.len()), sum(|c| c.failed.len()), sum(|c| c.skipped), unfinished.count()]
    }
}

/// What the second emulator passes and the first does not: verdicts, and whole programs.
pub fn behind(reports: &[Report]) -> Vec<String> {
    let [ours, peer] = reports else { return Vec::new() };
    let mut lines = Vec::new();
    for (ours, peer) in ours.cases.iter().zip(&peer.cases) {
        let mut left = ours.passed.clone();
        for verdict in &peer.passed {
            match left.iter().position(|one| one == verdict) {
                Some(at) => drop(left.swap_remove(at)),
                None => lines.push(format!("{}: {verdict}", ours.name)),
            }
        }
        if peer.end == End::Done && !matches!(ours.end, End::Done | End::Skipped) {
            lines.push(format!("{}: {}", ours.name, ours.end));
        }
    }
    lines
}

/// The table of one or two emulators: programs down.
pub struct Table<'a>(pub &'a [Report]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:26}", "test")?;
        for report in self.0 {
            write!(out, "{:>12} pass  fail  skip   seconds  {:12}", report.emulator, "end")?;
        }
        writeln!(out)?;
        let cases = self.0.first().map_or(0, |report| report.cases.len());
        for at in 0..cases {
            for (nth, case) in self.0.iter().filter_map(|report| report.cases.get(at)).enumerate() {
                if nth == 0 {
                    write!(out, "{:26}", case.name)?;
                }
                let counts = [case.passed.len(), case.failed.len(), case.skipped];
                let end = case.end.to_string();
                write!(
                    out,
                    "{:>17}{:6}{:6}{:10.1}  {end:12}",
                    counts[0], counts[1], counts[2], case.seconds
                )?;
            }
            writeln!(out)?;
        }
        for report in self.0 {
            let [passed, failed, skipped, unfinished] = report.totals();
            writeln!(
                out,
                "{}: {passed} passed, {failed} failed, {skipped} skipped; {unfinished} programs not ok",
                report.emulator
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(name: &str, passed: &[&str], end: End) -> Case {
        let passed = passed.iter().map(|p| p.to_string()).collect();
        Case { name: name.into(), passed, end, ..Case::default() }
    }

    #[test]
    fn only_what_the_peer_passes_counts_as_behind() {
        let ours = Report {
            emulator: "trapline",
            cases: vec![
                case("a", &["one", "one", "two"], End::Done),
                case("b", &[], End::TimedOut),
                case("c", &[], End::Failed("exit 3".into())),
            ],
        };
        let peer = Report {
            emulator: "qemu",
            cases: vec![
                case("a", &["one", "three"], End::Done),
                case("b", &[], End::Done),
                case("c", &[], End::TimedOut),
            ],
        };
        assert_eq!(behind(&[ours, peer]), ["a: three", "b: time-out"]);
    }
}
