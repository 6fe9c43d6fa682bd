//! FEX's instruction tests: NASM sources that carry their expected registers as JSON.
//!
//! They are assembled here, packed into one file, and run by `guest/regtest.c` as a user program: in a
//! Linux guest on either emulator, or on the host's own processor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

#[cfg(test)]
use super::Which;
use super::report::{Case, End, Report};
use super::{Args, linux};
use crate::tools;

/// What a test may need: features of the `max` model. Tests that need others are not applicable.
const FEATURES: [&str; 15] = [
    "RAND", "SHA", "CLWB", "LINUX", "SSSE3", "SSE4.1", "SSE4.2", "AES", "PCLMUL", "MOVBE", "ADX", "XSAVE",
    "RDPID", "CLFLOPT", "FSGSBASE",
];

/// The registers' names in the order in which the guest program numbers them.
const REGISTERS: [&str; 43] = [
    "RIP", "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15", "XMM0", "XMM1", "XMM2", "XMM3", "XMM4", "XMM5", "XMM6", "XMM7", "XMM8", "XMM9", "XMM10",
    "XMM11", "XMM12", "XMM13", "XMM14", "XMM15", "GS", "FS", "MM0", "MM1", "MM2", "MM3", "MM4", "MM5", "MM6",
    "MM7",
];

/// One value or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

/// The JSON of a test.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    reg_data: BTreeMap<String, Words>,
    memory_regions: BTreeMap<String, String>,
    memory_data: BTreeMap<String, String>,
    host_features: Vec<String>,
}

/// A test, ready to run.
struct Test {
    name: String,
    mode: u32,
    code: Vec<u8>,
    config: Config,
}

/// Runs the tests of a checkout of FEX.
pub fn run(args: &Args) -> Result<Vec<Report>> {
    let root = args.suite_dir.join("unittests");
    let scratch = tempdir()?;
    let mut tests = Vec::new();
    let mut absent = 0;
    for (folder, mode) in [("ASM", 64), ("32Bit_ASM", 32)] {
        let folder = root.join(folder);
        let out = excluded(&folder);
        let mut sources = Vec::new();
        find_sources(&folder, &mut sources)
            .with_context(|| format!("cannot read {folder:?}: expected FEX's sources"))?;
        sources.sort();
        for source in sources {
            let name = source.strip_prefix(&folder).unwrap_or(&source).to_string_lossy().into_owned();
            if args.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            let text = std::fs::read_to_string(&source).with_context(|| format!("cannot read {source:?}"))?;
            let config = config(&text).with_context(|| format!("{name} has a bad configuration"))?;
            let known = |f: &String| FEATURES.contains(&f.to_uppercase().as_str());
            let runs_here = config.host_features.iter().all(known) && !needs_avx(&text);
            if out.contains(&name) || !runs_here {
                absent += 1;
                continue;
            }
            let code = assemble(&text, mode, &folder.join("Includes"), &scratch)
                .with_context(|| format!("cannot assemble {name}"))?;
            tests.push(Test { name: format!("{mode}/{name}"), mode, code, config });
        }
    }
    std::fs::remove_dir_all(&scratch).ok();
    if tests.is_empty() {
        bail!("no test to run");
    }
    println!("{} tests, {absent} more not applicable", tests.len());
    let program = linux::program("regtest", &["-static-pie", "-fno-stack-protector"])?;
    let files = [("regtest".into(), program), ("tests".into(), pack(&tests)?)];
    let command = vec!["/files/regtest".into(), "/files/tests".into()];
    let runs = linux::run(args, &args.on, &files, &[command])?;
    Ok(runs
        .into_iter()
        .map(|run| Report { emulator: run.which.name(), cases: cases(&tests, &run) })
        .collect())
}

/// A folder for the assembler's files.
fn tempdir() -> Result<PathBuf> {
    let path = tools::cache()?.join(format!("fex.{}", std::process::id()));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {path:?}"))?;
    Ok(path)
}

/// What the suite itself does not run, or expects to fail, on a host processor.
fn excluded(folder: &Path) -> Vec<String> {
    ["Disabled_Tests", "Disabled_Tests_host", "Known_Failures", "Known_Failures_host"]
        .iter()
        .filter_map(|list| std::fs::read_to_string(folder.join(list)).ok())
        .flat_map(|text| {
            text.lines().map(|line| line.trim().trim_start_matches("Test_").to_owned()).collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a test has AVX instructions, which not all of those that do say: their mnemonics begin with V.
fn needs_avx(text: &str) -> bool {
    let code = text.rsplit("%endif").next().unwrap_or(text);
    let code = code.lines().filter_map(|line| line.split(';').next());
    let mut words = code.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != ':'));
    words.any(|word| {
        let lower = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        word.starts_with('v') && word.len() > 4 && lower && !word.starts_with("value")
    })
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find_sources(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "asm") {
            found.push(path);
        }
    }
    Ok(())
}

/// The JSON between `%ifdef CONFIG` and `%endif`.
fn config(text: &str) -> Result<Config> {
    let Some((_, rest)) = text.split_once("%ifdef CONFIG") else { return Ok(Config::default()) };
    let (json, _) = rest.split_once("%endif").context("no %endif")?;
    Ok(serde_json::from_str(json)?)
}

fn assemble(text: &str, mode: u32, includes: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let (source, binary) = (scratch.join("test.asm"), scratch.join("test.bin"));
    let head = match mode {
        64 => "BITS 64\n",
        _ => "BITS 32\norg 10000h\nmov eax, 0x17\nmov ds, ax\nmov es, ax\n",
    };
    std::fs::write(&source, format!("{head}{text}\nret\n"))?;
    let mut command = Command::new("nasm");
    command
        .arg("-i")
        .arg(format!("{}/", includes.display()))
        .arg("-w-all")
        .arg(&source)
        .arg("-o")
        .arg(&binary);
    tools::output(&mut command, "nasm")?;
    Ok(std::fs::read(&binary)?)
}

/// A number as Python's `int(text, 0)` reads it.
fn number(text: &str) -> Result<u64> {
    let text = text.trim().replace('_', "");
    let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse::<i128>().ok().map(|v| v as u64),
    };
    value.with_context(|| format!("not a number: {text:?}"))
}

/// Memory contents: words in hexadecimal, each with its last byte first.
fn bytes(text: &str) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        let digits = word.trim_start_matches("0x");
        let mut end = digits.len();
        while end > 0 {
            let start = end.saturating_sub(2);
            out.push(
                u8::from_str_radix(&digits[start..end], 16).with_context(|| format!("bad bytes {word:?}"))?,
            );
            end = start;
        }
    }
    Ok(out)
}

/// The file that the guest program reads.
fn pack(tests: &[Test]) -> Result<Vec<u8>> {
    let block = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    };
    let mut out = (tests.len() as u32).to_le_bytes().to_vec();
    for test in tests {
        let c = &test.config;
        let mut body = test.mode.to_le_bytes().to_vec();
        block(&mut body, &test.code);
        body.extend((c.memory_regions.len() as u32).to_le_bytes());
        for (at, size) in &c.memory_regions {
            body.extend(number(at)?.to_le_bytes());
            body.extend(number(size)?.to_le_bytes());
        }
        body.extend((c.memory_data.len() as u32).to_le_bytes());
        for (at, data) in &c.memory_data {
            body.extend(number(at)?.to_le_bytes());
            block(&mut body, &bytes(data)?);
        }
        let mut expected = (c.reg_data.len() as u32).to_le_bytes().to_vec();
        for (name, words) in &c.reg_data {
            let at = REGISTERS.iter().position(|r| *r == name.to_uppercase());
            expected.extend((at.with_context(|| format!("no register {name}"))? as u32).to_le_bytes());
            let words = match words {
                Words::One(word) => vec![number(word)?],
                Words::Many(words) => words.iter().map(|w| number(w)).collect::<Result<_>>()?,
            };
            expected.extend((words.len() as u32).to_le_bytes());
            expected.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        }
        out.extend((test.name.len() as u32).to_le_bytes());
        out.extend((body.len() as u32).to_le_bytes());
        out.extend(test.name.bytes());
        out.extend(body);
        block(&mut out, &expected);
    }
    Ok(out)
}

/// A row of the table for each folder of tests.
fn cases(tests: &[Test], run: &linux::Outputs) -> Vec<Case> {
    let group = |name: &str| {
        let mut parts = name.split('/');
        let mode = parts.next().unwrap_or_default();
        let folder = parts.next().filter(|_| parts.next().is_some()).unwrap_or("(top)");
        format!("{mode} {folder}")
    };
    let verdicts: BTreeMap<&str, (&str, &str)> = run
        .outputs
        .iter()
        .flat_map(|output| &output.lines)
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let kind = fields.next()?;
            Some((
                fields.next()?,
                (kind.get(kind.len().saturating_sub(4)..)?, fields.next().unwrap_or_default()),
            ))
        })
        .collect();
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for test in tests {
        let name = group(&test.name);
        let case = cases.entry(name.clone()).or_insert_with(|| Case { name, ..Case::default() });
        match verdicts.get(test.name.as_str()) {
            Some(("PASS", _)) => case.passed.push(test.name.clone()),
            Some((_, why)) => {
                println!("failed: {}: {why}", test.name);
                case.failed.push(test.name.clone());
            }
            None => case.failed.push(test.name.clone()),
        }
    }
    let mut cases: Vec<Case> = cases.into_values().collect();
    if let Some(first) = cases.first_mut() {
        first.seconds = run.seconds;
        if run.outputs.iter().any(|output| output.status != Some(0)) {
            first.end = End::Failed("incomplete".into());
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_read() {
        let text = "%ifdef CONFIG\n{ \"RegData\": { \"RAX\": \"0x10\", \"xmm1\": [\"1\", \"-1\"] },\n\
            \"MemoryRegions\": { \"0x100000000\": \"4096\" }, \"MemoryData\": { \"0x100000000\": \"0x0102 03\" },\n\
            \"HostFeatures\": [\"AVX\"] }\n%endif\nhlt\n";
        let config = config(text).unwrap();
        assert_eq!(config.host_features, ["AVX"]);
        assert_eq!(bytes(&config.memory_data["0x100000000"]).unwrap(), [2, 1, 3]);
        assert_eq!((number("0x10").unwrap(), number("-1").unwrap()), (16, u64::MAX));
        let test = Test { name: "64/a/b.asm".into(), mode: 64, code: vec![0xf4], config };
        let packed = pack(std::slice::from_ref(&test)).unwrap();
        assert_eq!(packed[..4], 1u32.to_le_bytes());
        assert!(number("x").is_err() && bytes("zz").is_err());
        assert!(needs_avx("%endif\n rw vmovups, 1") && !needs_avx("%endif\nvalue: dq 1 ; vmovups\n"));

        let output = linux::Output { lines: vec!["PASS\t64/a/b.asm".into()], status: Some(0) };
        let output = linux::Outputs { which: Which::Qemu, outputs: vec![output], seconds: 1.0 };
        let cases = cases(&[test], &output);
        assert_eq!((cases[0].name.as_str(), cases[0].passed.len()), ("64 a", 1));
    }
}
