//! The step `mutants` of `cargo xtask test --full`: cargo-mutants changes the code that holds the data and says who may do what,
//! and the tests have to notice each change. `.cargo/mutants.toml` lists the changes that no test can notice, with reasons.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// The code that is changed, and the tests that have to notice it.
struct Target {
    name: &'static str,
    files: &'static [&'static str],
    /// The arguments of each pass, the quick one first. A pass runs only on what the passes before it have not noticed.
    passes: &'static [&'static [&'static str]],
}

const TARGETS: [Target; 4] = [
    Target {
        name: "engine",
        files: &["host/engine/src/**"],
        passes: &[&["--test-package=vkog-engine,vkog-plugin-testing"]],
    },
    Target {
        name: "access",
        files: &[
            "host/src/api/auth.rs",
            "host/src/api/etag.rs",
            "host/src/api/origin.rs",
            "host/src/api/path.rs",
            "host/src/api/range.rs",
        ],
        passes: &[
            &["--test-package=vkog", "--", "--lib", "--", "api::"],
            &["--test-package=vkog-tests", "--", "--test=black_box", "--", "access::", "hostile::"],
        ],
    },
    Target {
        name: "plugin-host",
        files: &["host/plugin-host/src/**"],
        passes: &[
            &["--test-package=vkog-plugin-host,vkog-engine,vkog-plugin-testing", "--", "--lib", "--tests"],
            &[
                "--test-package=vkog-tests",
                "--",
                "--test=black_box",
                "--",
                "asking::",
                "blocking::",
                "expiry::",
                "hyper::hooks::",
                "loading::",
                "metrics::",
                "plugin_files::",
                "quarantine::",
                "reload::",
                "statistics::",
                "stopping::",
                "trust::",
            ],
        ],
    },
    Target {
        name: "store",
        files: &["host/store/src/**"],
        passes: &[
            &[
                "--test-package=vkog-store",
                "--",
                "--lib",
                "--test=files",
                "--test=locks",
                "--test=repair",
                "--test=stores",
            ],
            &["--test-package=vkog-store", "--", "--test=simulated_disk"],
            &[
                "--test-package=vkog-tests",
                "--",
                "--test=black_box",
                "--",
                "disk_trouble::",
                "store::",
                "store_commands::",
            ],
        ],
    },
];

/// Runs cargo-mutants on each target. Returns a line for each one with changes that no test has noticed.
///
/// # Errors
///
/// cargo-mutants fails, for instance because a test fails without any change.
pub(crate) fn run(cargo: &dyn Fn() -> Command) -> Result<Vec<String>> {
    let mut survivors = Vec::new();
    for target in &TARGETS {
        let output = Path::new("target/mutants").join(target.name);
        fs::create_dir_all(&output)?;
        for (index, pass) in target.passes.iter().enumerate() {
            println!("\n== mutants: {}, pass {} of {}", target.name, index + 1, target.passes.len());
            let mut mutants = cargo();
            mutants.args(["mutants", "--minimum-test-timeout=60", "--output"]).arg(&output);
            if index > 0 {
                mutants.arg("--iterate");
            }
            let files = target.files.iter().flat_map(|files| ["--file", files]);
            let status = mutants.args(files).args(*pass).status()?;
            // 2 and 3 report that tests have not noticed a change, or hang on one.
            if !matches!(status.code(), Some(0 | 2 | 3)) {
                return Err(format!("cargo mutants on {} ended with {status}", target.name).into());
            }
        }
        let missed = output.join("mutants.out/missed.txt");
        let count = fs::read_to_string(&missed)?.lines().count();
        if count > 0 {
            survivors.push(format!("no test notices {count} changes of {}: {}", target.name, missed.display()));
        }
    }
    Ok(survivors)
}
