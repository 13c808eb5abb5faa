//! Runs those black-box tests that make sense on another system, or on another store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;
use crate::build;

/// Which tests a command runs. A test is given by its module, and its name (none for the whole module). A module without an engine in
/// front means that of each engine.
pub(crate) struct Selection {
    /// The command after `cargo xtask`, which is also the name of the file with the lists.
    pub(crate) command: &'static str,
    /// The tests that `--quick` runs.
    pub(crate) quick: &'static [(&'static str, Option<&'static str>)],
    /// The tests that are left out, with reasons.
    pub(crate) left_out: &'static [(&'static str, Option<&'static str>, &'static str)],
}

impl Selection {
    /// Runs the tests with these environment variables, and those that fail again until this number of attempts.
    ///
    /// # Errors
    ///
    /// A test fails, or a list names a test that does not exist.
    pub(crate) fn run(&self, quick: bool, attempts: usize, environment: &[(&str, &str)]) -> Result<()> {
        let program = black_box()?;
        let names = listed(&program)?;
        let quicks = self.quick.iter().map(|(module, test)| (*module, *test));
        for (module, test) in self.left_out.iter().map(|(module, test, _)| (*module, *test)).chain(quicks) {
            if !names.iter().any(|name| is_of(name, module, test)) {
                let (gone, command) = (test.unwrap_or("test"), self.command);
                return Err(format!("there is no {gone} in {module} any more; correct xtask/src/{command}.rs").into());
            }
        }
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut run = BTreeSet::new();
        for name in names {
            if let Some((.., reason)) = self.left_out.iter().find(|(module, test, _)| is_of(&name, module, *test)) {
                *reasons.entry((*reason).to_owned()).or_default() += 1;
            } else if !quick || self.quick.iter().any(|(module, test)| is_of(&name, module, *test)) {
                run.insert(name);
            } else {
                let later = format!("is left to `cargo xtask {}` without --quick", self.command);
                *reasons.entry(later).or_default() += 1;
            }
        }
        let count = run.len();
        let mut failed = run;
        for _ in 0..attempts {
            if !failed.is_empty() {
                failed = run_tests(&failed, environment)?;
            }
        }
        println!("\n{count} tests were run, {} were left out:", reasons.values().sum::<usize>());
        for (reason, count) in reasons {
            println!("{count:5}  {reason}");
        }
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", Vec::from_iter(failed).join(", ")).into()) }
    }
}

/// Whether a test belongs to a module and, if one is given, is this one of it.
fn is_of(name: &str, module: &str, test: Option<&str>) -> bool {
    let of = |name: &str| match (name.strip_prefix(module).and_then(|rest| rest.strip_prefix("::")), test) {
        (Some(rest), Some(test)) => rest.rsplit("::").next() == Some(test),
        (rest, None) => rest.is_some(),
        (None, Some(_)) => false,
    };
    let without_engine = ["hyper::", "tiny::", "h2::"].iter().find_map(|engine| name.strip_prefix(engine));
    of(name) || without_engine.is_some_and(of)
}

/// Runs these tests, shows what they say, and returns those that failed.
fn run_tests(names: &BTreeSet<String>, environment: &[(&str, &str)]) -> Result<BTreeSet<String>> {
    // By cargo, whose variables are those of `cargo test`: with others, the tests would build the server again.
    let mut command = cargo_test();
    command.args(["--", "--exact"]).args(names).envs(environment.iter().copied());
    let mut tests = command.stdout(Stdio::piped()).spawn()?;
    let mut failed = BTreeSet::new();
    for line in BufReader::new(tests.stdout.take().ok_or("the tests have no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            failed.insert(name.to_owned());
        }
    }
    let status = tests.wait()?;
    if !status.success() && failed.is_empty() {
        return Err(format!("the tests ended early: {status}").into());
    }
    Ok(failed)
}

fn cargo_test() -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "vkog-tests", "--test", "black_box"]);
    cargo
}

/// The program that cargo makes of `tests/tests/black_box`.
fn black_box() -> Result<PathBuf> {
    let mut cargo = cargo_test();
    let output =
        cargo.args(["--no-run", "--message-format=json-render-diagnostics"]).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run: {}", output.status).into());
    }
    let built = build::artifacts(&output.stdout, &["black-box"])?;
    Ok(built.into_iter().next().ok_or("cargo built no test black_box")?.file)
}

fn listed(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output()?;
    let listed = String::from_utf8(output.stdout)?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
