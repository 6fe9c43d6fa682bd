//! The table of a benchmark: phases down, emulators across.

use std::fmt;

use crate::bench::{Results, Sample};

/// One or two emulators' results side by side.
pub struct Table<'a> {
    results: &'a [Results],
}

impl<'a> Table<'a> {
    pub fn new(results: &'a [Results]) -> Self {
        Self { results }
    }

    /// Whether the emulators agree on every result that both have.
    pub fn agrees(&self) -> bool {
        self.phases().all(|phase| same(&self.row(phase)) != Some(false))
    }

    fn phases(&self) -> impl Iterator<Item = &'a str> {
        self.results
            .first()
            .into_iter()
            .flat_map(|one| one.samples.iter().map(|sample| sample.phase.as_str()))
    }

    fn row(&self, phase: &str) -> Vec<Option<&'a Sample>> {
        self.results.iter().map(|one| one.samples.iter().find(|sample| sample.phase == phase)).collect()
    }
}

/// Whether two results agree; `None` where there is nothing to compare.
fn same(row: &[Option<&Sample>]) -> Option<bool> {
    match row {
        [Some(a), Some(b)] if !a.check.is_empty() => Some(a.check == b.check),
        _ => None,
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:10}", "phase")?;
        for one in self.results {
            write!(out, "{:>12}", format!("{} s", one.emulator))?;
        }
        if self.results.len() == 2 {
            write!(out, "{:>8}{:>8}", "ratio", "chk")?;
        }
        writeln!(out)?;
        for phase in self.phases() {
            let row = self.row(phase);
            write!(out, "{phase:10}")?;
            for sample in &row {
                match sample {
                    Some(sample) => write!(out, "{:12.2}", sample.cpu)?,
                    None => write!(out, "{:>12}", "-")?,
                }
            }
            if let [a, b] = row[..] {
                match (a, b) {
                    (Some(a), Some(b)) if b.cpu > 0.0 => write!(out, "{:8.2}", a.cpu / b.cpu)?,
                    _ => write!(out, "{:>8}", "-")?,
                }
                let verdict = match same(&row) {
                    Some(true) => "equal",
                    Some(false) => "DIFFERS",
                    None => "-",
                };
                write!(out, "{verdict:>8}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(emulator: &'static str, samples: &[(&str, f64, &str)]) -> Results {
        let sample = |&(phase, cpu, check): &(&str, f64, &str)| Sample {
            phase: phase.into(),
            cpu,
            wall: cpu,
            check: check.into(),
        };
        Results { emulator, samples: samples.iter().map(sample).collect() }
    }

    #[test]
    fn two_emulators_stand_side_by_side() {
        let both = [
            results("trapline", &[("boot", 2.0, ""), ("int", 1.5, "77"), ("fp", 1.0, "8")]),
            results("qemu", &[("boot", 4.0, ""), ("int", 1.0, "77"), ("total", 9.0, "")]),
        ];
        let table = Table::new(&both);
        assert!(table.agrees());
        let text = "phase       trapline s      qemu s   ratio     chk\n\
                    boot              2.00        4.00    0.50       -\n\
                    int               1.50        1.00    1.50   equal\n\
                    fp                1.00           -       -       -\n";
        assert_eq!(table.to_string(), text);
    }

    #[test]
    fn different_results_are_shouted() {
        let both = [results("trapline", &[("int", 1.0, "77")]), results("qemu", &[("int", 1.0, "78")])];
        assert!(!Table::new(&both).agrees());
        assert!(Table::new(&both).to_string().contains("DIFFERS"));
    }
}
