//! `cargo xtask windows`: the black-box tests, of the program that is built for Windows, run by Wine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Result;
use crate::build;

/// What is not run, and why: the file, the test (none for all of the file), the reason.
const LEFT_OUT: &[(&str, Option<&str>, &str)] = &[
    ("access", Some("a_reload_takes_in_other_tokens_or_leaves_them_all"), "needs SIGHUP"),
    ("access", Some("tokens_are_asked_for_on_a_unix_socket_too_once_there_are_some"), UNIX_SOCKET),
    ("authoring", None, "shows what the compiler says of sources, whatever system they are for"),
    ("bad_input", Some("a_body_of_200_mb_against_128_mib_is_413_and_costs_no_memory"), MEMORY),
    ("browsers", Some("a_unix_socket_accepts_any_host_and_rejects_cross_site_requests"), UNIX_SOCKET),
    ("building", Some("a_new_crate_can_depend_on_a_clone_of_the_interface"), "gives Linux' cargo a path of Wine's"),
    ("building", Some("a_plugin_built_by_another_compiler_loads"), "needs several compilers that build for Windows"),
    ("chromium", None, "needs a browser, and shows what it says of a server, whatever system that runs on"),
    ("client", None, "gives its commands as lines of a Unix shell"),
    ("disk_trouble", None, "needs strace and mounts of Linux"),
    ("documents", Some("the_authoring_guide_goes_from_an_empty_folder_to_a_refused_put"), SHELL),
    ("documents", Some("the_session_of_batches_happens_as_it_is_shown"), SHELL),
    ("documents", Some("the_session_of_every_plugin_happens_as_it_is_shown"), SHELL),
    ("documents", Some("the_session_of_the_client_happens_as_it_is_shown"), SHELL),
    ("documents", Some("the_sessions_of_the_readme_happen_as_they_are_shown"), SHELL),
    ("durability", Some("a_stop_is_heard_however_many_snapshots_were_asked_for"), "needs SIGUSR1"),
    ("examples", Some("at_a_stop_audit_waits_until_a_slow_file_has_taken_every_line"), "needs a named pipe of Unix"),
    ("expiry", None, "has entries expire within the time that Wine takes to write them"),
    ("hostile", None, MEMORY),
    ("hygiene", None, "measures threads and files as Linux counts them"),
    ("latency", None, "measures time, and Wine takes its own"),
    ("limits", Some("a_connection_over_the_limit_is_503_and_the_next_one_after_an_end_is_served"), "needs ulimit"),
    ("limits", Some("a_unix_socket_is_served_by_either_engine"), UNIX_SOCKET),
    ("lives", Some("a_server_that_is_killed_before_its_first_write_leaves_a_whole_store"), "needs SIGUSR1"),
    ("loading", Some("a_plugin_whose_panics_would_abort_is_refused"), "needs a std for Windows that can abort"),
    ("log_reader", None, "needs a pipe as standard error"),
    ("memory", None, MEMORY),
    ("ownership", None, "is about sockets, locks and rights as Unix has them"),
    ("plugin_files", None, "is about libraries as Linux loads them"),
    ("reload", Some("a_signal_reloads_as_the_request_does"), "needs SIGHUP"),
    ("service", None, "needs systemd's socket"),
    ("stopping", None, "needs signals, one after the other"),
    (
        "tls",
        Some("a_reload_takes_in_a_renewed_certificate_and_keeps_the_old_one_for_one_that_is_broken"),
        "needs SIGHUP",
    ),
    ("trust", Some("a_bare_name_is_a_file_in_the_current_directory_and_never_searched_for"), RIGHTS),
    ("trust", Some("a_folder_around_it_that_everybody_can_rename_in_is_refused_unless_it_is_sticky"), RIGHTS),
    ("trust", Some("a_folder_that_others_can_put_libraries_into_is_refused_sticky_or_not"), RIGHTS),
    ("trust", Some("a_host_starts_without_a_plugin_that_is_not_required"), RIGHTS),
    ("trust", Some("a_library_that_looks_for_others_where_anybody_may_put_them_is_refused"), "is about ELF's RUNPATH"),
    ("trust", Some("a_library_that_the_group_or_everybody_can_write_is_refused"), RIGHTS),
    ("trust", Some("a_link_out_of_the_folder_is_refused_and_one_within_is_followed"), "makes links of Unix"),
    ("trust", Some("a_link_to_a_subfolder_that_others_can_write_is_refused"), RIGHTS),
    ("trust", Some("a_pipe_a_socket_and_a_folder_are_refused_and_nobody_waits"), "needs a named pipe of Unix"),
    ("trust", Some("a_noexec_temporary_folder_is_refused_only_where_no_file_in_memory_can_be_made"), "needs noexec"),
    ("trust", Some("no_copy_is_left_behind"), "Windows keeps a file that is mapped"),
    ("trust", Some("what_a_library_needs_is_not_taken_from_the_current_directory"), "is about LD_LIBRARY_PATH"),
    ("trust", Some("what_belongs_to_somebody_else_is_refused"), RIGHTS),
];

const MEMORY: &str = "measures memory as Linux counts it; Wine fills what Linux only promises";
const RIGHTS: &str = "is about owners and rights as Unix has them";
const SHELL: &str = "follows a document of which the commands are a Unix shell's";
const UNIX_SOCKET: &str = "needs Unix sockets";

/// What `VKOG_WINDOWS` names, with a word more: it builds for Windows (`build`), or runs such a program (`run`).
pub(crate) fn command(word: &str) -> Option<Command> {
    let named = std::env::var("VKOG_WINDOWS").ok()?;
    let mut words = named.split_whitespace();
    let mut command = Command::new(words.next()?);
    command.args(words).arg(word);
    Some(command)
}

pub(crate) fn test() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let told = "VKOG_WINDOWS is not set; it names what builds and runs programs for Windows: \"windows.sh DIR\"";
    let mut all = command("build").ok_or(told)?;
    all.args(["--workspace", "--exclude", "vkog-tests", "--exclude", "xtask"]);
    let output = all.arg("--message-format=json-render-diagnostics").output()?;
    let said = String::from_utf8(output.stderr)?;
    eprint!("{said}");
    if !output.status.success() || said.lines().any(|line| line.starts_with("warning")) {
        return Err("it does not build for Windows without a warning".into());
    }
    let program = build::artifacts(&output.stdout, &["vkog"])?.into_iter().next().ok_or("cargo built no vkog")?.file;
    // Wine's own server comes with the first program and goes with the last. While this one runs it is there, and writes to
    // the streams of no test. What makes a program's folder ready for Wine is done by then, too.
    let mut kept = command("run").ok_or(told)?;
    kept.arg(&program).args(["--no-plugins", "--listen", "127.0.0.1:0", "--file", "target/windows.vkog"]);
    let mut kept = kept.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut line = String::new();
    let listens = kept.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    let tested = if listens.is_some() && line.starts_with("listening on ") {
        test_all()
    } else {
        Err(format!("vkog.exe does not listen, it says {line:?}").into())
    };
    kept.kill()?;
    kept.wait()?;
    tested
}

fn test_all() -> Result<()> {
    let tests = tests()?;
    let mut names = BTreeMap::new();
    for (file, test) in &tests {
        names.insert(file.as_str(), listed(test)?);
    }
    for (file, test, _) in LEFT_OUT {
        let known = |names: &Vec<String>| test.is_none_or(|test| names.iter().any(|name| name == test));
        if !names.get(file).is_some_and(known) {
            let gone = test.unwrap_or("them");
            return Err(format!("no {gone} in tests/{file}.rs, to be left out; correct xtask/src/windows.rs").into());
        }
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut run, mut failed) = (0, Vec::new());
    for (file, test) in &tests {
        let rows = || LEFT_OUT.iter().filter(|(of, ..)| of == file);
        let reason = |name: &str| rows().find(|(_, test, _)| test.is_none_or(|test| test == name)).map(|row| row.2);
        let mut command = Command::new(test);
        command.current_dir("tests").arg("--exact");
        let mut here = 0;
        for name in &names[file.as_str()] {
            if let Some(reason) = reason(name) {
                *reasons.entry(reason).or_default() += 1;
                command.args(["--skip", name]);
            } else {
                here += 1;
            }
        }
        run += here;
        if here > 0 {
            println!("-- {file}");
            // Wine loses a connection that comes at the very start of a server once in some hundred starts.
            let passed = command.status()?.success() || {
                println!("-- {file}, once more");
                command.status()?.success()
            };
            if !passed {
                failed.push(file.as_str());
            }
        }
    }
    println!("\n{run} tests were run for Windows, {} were left out:", reasons.values().sum::<usize>());
    for (reason, count) in reasons {
        println!("{count:5}  {reason}");
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("tests failed in {}", failed.join(", ")).into()) }
}

/// The programs that cargo makes of `tests/tests`, by the names of the files.
fn tests() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--package", "vkog-tests", "--tests", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo test --no-run: {}", output.status).into());
    }
    let mut tests = BTreeMap::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let (name, executable) = (&message["target"]["name"], &message["executable"]);
        if message["target"]["kind"][0] == "test"
            && let (Some(name), Some(executable)) = (name.as_str(), executable.as_str())
        {
            tests.insert(name.to_owned(), executable.into());
        }
    }
    Ok(tests)
}

fn listed(test: &PathBuf) -> Result<Vec<String>> {
    let output = Command::new(test).args(["--list", "--format", "terse"]).output()?;
    let listed = String::from_utf8(output.stdout)?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
