//! `cargo xtask windows`: runs the black-box tests of the program for Windows under Wine. With `--quick`, it runs the
//! tests that depend on the system most, as CI does for each submission.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::Result;
use crate::black_box::Selection;
use crate::build;

const SELECTION: Selection = Selection { command: "windows", quick: QUICK, left_out: LEFT_OUT };

/// The modules of the black-box tests, and single tests of further ones, that `--quick` runs: files, locks, libraries, the network
/// and the end of a process are those that differ between systems.
const QUICK: &[(&str, Option<&str>)] = &[
    ("command_line", None),
    ("frozen", None),
    ("hyper::values", None),
    ("lives", None),
    ("loading", None),
    ("page", None),
    ("reload", None),
    ("store", None),
    ("tiny::values", None),
    ("tls", None),
    ("trust", None),
    ("ttl", None),
    ("durability", Some("a_kill_loses_nothing_without_any_sync")),
];

/// The tests that are left out: the module, the test (none for the whole module), the reason. A module without an engine in front
/// is left out for both.
const LEFT_OUT: &[(&str, Option<&str>, &str)] = &[
    ("access", Some("a_reload_replaces_all_tokens_or_none"), "needs SIGHUP"),
    ("access", Some("configured_tokens_are_required_on_a_unix_socket_too"), UNIX_SOCKET),
    ("authoring", None, "tests errors of the compiler, which do not depend on the target system"),
    ("backup", Some("check_and_export_read_a_prefix_of_the_history_beside_a_server"), "needs SIGUSR1"),
    ("backup", Some("the_client_replaces_only_files_and_follows_links"), "needs named pipes and links of Unix"),
    ("bad_input", Some("a_body_of_200_mb_against_128_mib_is_413_and_costs_no_memory"), MEMORY),
    ("browsers", Some("a_unix_socket_accepts_any_host_and_rejects_cross_site_requests"), UNIX_SOCKET),
    ("building", Some("a_new_crate_can_depend_on_a_clone_of_the_interface"), "gives Linux' cargo a path of Wine's"),
    ("building", Some("a_plugin_built_by_another_compiler_loads"), "needs several compilers that build for Windows"),
    ("chromium", None, "tests a browser, which does not depend on the system of the server"),
    ("command_line", Some("a_file_that_cannot_be_used_has_a_way_out_that_fits_the_reason"), LINES),
    (
        "command_line",
        Some("a_misspelt_command_or_task_is_reported_with_the_right_one"),
        "runs xtask, a program of Linux",
    ),
    ("command_line", Some("a_server_without_a_plugin_folder_warns_once"), "runs a copy of the program of Linux"),
    ("clients", None, "needs Unix sockets, and the clients of Linux"),
    ("client", None, LINES),
    ("disk_trouble", None, "needs strace and mounts of Linux"),
    ("delete_prefix", Some("the_client_deletes_by_prefix_after_a_confirmation_and_names_refused_keys"), LINES),
    ("documents", Some("the_plugin_tutorial_leads_from_an_empty_folder_to_a_rejected_put"), SHELL),
    ("documents", Some("the_sessions_of_the_documentation_run_as_shown"), SHELL),
    ("documents", Some("the_session_of_every_plugin_readme_runs_as_shown"), SHELL),
    ("documents", Some("the_sessions_of_the_readme_run_as_shown"), SHELL),
    ("durability", Some("a_stop_is_handled_during_many_snapshot_requests"), "needs SIGUSR1"),
    ("examples", Some("audit_writes_every_line_to_a_slow_file_before_the_stop_ends"), "needs a named pipe of Unix"),
    ("exit_statuses", None, LINES),
    ("expiring", Some("the_client_fails_if_a_server_without_ttl_ignores_the_time_to_live"), LINES),
    ("expiring", Some("the_client_touches_a_key_and_lists_its_expiry"), LINES),
    ("expiry", None, "has entries expire within the time that Wine takes to write them"),
    (
        "generated_clients",
        None,
        "runs code generators and their output, which do not depend on the system of the server",
    ),
    ("health", Some("a_server_at_a_unix_socket_is_checked"), UNIX_SOCKET),
    ("health", Some("a_server_that_is_live_but_not_ready_is_status_4"), UNIX_SOCKET),
    ("hostile", None, MEMORY),
    ("hygiene", None, "measures threads and files as Linux counts them"),
    ("latency", None, "measures time, and Wine takes its own"),
    ("limits", Some("a_connection_over_the_limit_is_503_until_another_one_ends"), "needs ulimit"),
    ("limits", Some("the_connections_of_all_addresses_share_one_limit"), "needs ulimit"),
    ("limits", Some("a_unix_socket_is_served_by_either_engine"), UNIX_SOCKET),
    ("lives", Some("a_server_that_is_killed_before_its_first_write_leaves_a_whole_store"), "needs SIGUSR1"),
    ("listening", None, "needs Unix sockets and what a service manager passes"),
    ("loading", Some("a_plugin_whose_panics_would_abort_is_refused"), "needs a std for Windows that can abort"),
    ("loading", Some("the_error_for_a_newer_glibc_names_both_versions"), "is about libraries as Linux loads them"),
    ("log_reader", None, "needs a pipe as standard error"),
    ("memory", None, MEMORY),
    ("packages", None, "is about packages and images for Linux"),
    ("ownership", None, "is about sockets, locks and rights as Unix has them"),
    ("proxies", None, "needs the proxies of Linux, which do not depend on the system of the server"),
    ("plugin_commands", None, "is about libraries, links and disks as Linux has them"),
    ("plugin_files", None, "is about libraries as Linux loads them"),
    ("plugin_model", None, "pauses servers and requests snapshots by signals of Unix"),
    ("reference", None, "checks documents, which do not depend on the system"),
    ("reload", Some("a_signal_reloads_as_the_request_does"), "needs SIGHUP"),
    ("service", None, "needs systemd's socket"),
    ("shell", None, LINES),
    ("starting", None, "needs Unix sockets and what a service manager passes"),
    ("store_commands", Some("check_and_export_write_nothing_on_read_only_media"), "needs a mount of Linux"),
    ("stopping", None, "needs signals, one after the other"),
    ("tls", Some("an_address_with_http_and_a_unix_socket_speak_no_tls_beside_one_that_does"), UNIX_SOCKET),
    ("tls", Some("a_reload_applies_a_renewed_certificate_and_ignores_a_broken_one"), "needs SIGHUP"),
    ("top", None, "needs a pseudoterminal"),
    ("trust", Some("a_bare_name_is_a_file_in_the_current_directory_and_never_searched_for"), RIGHTS),
    ("trust", Some("a_parent_folder_that_others_can_write_is_refused_unless_it_is_sticky"), RIGHTS),
    ("trust", Some("a_plugin_folder_that_others_can_write_is_refused_sticky_or_not"), RIGHTS),
    ("trust", Some("a_server_starts_without_an_optional_plugin"), RIGHTS),
    ("trust", Some("a_library_with_an_unsafe_runpath_is_refused"), "is about ELF's RUNPATH"),
    ("trust", Some("a_library_that_group_or_others_can_write_is_refused"), RIGHTS),
    ("trust", Some("a_link_out_of_the_folder_is_refused_and_one_within_is_followed"), "makes links of Unix"),
    ("trust", Some("a_link_to_a_subfolder_that_others_can_write_is_refused"), RIGHTS),
    ("trust", Some("a_pipe_a_socket_and_a_folder_are_refused_without_blocking"), "needs a named pipe of Unix"),
    ("trust", Some("a_noexec_temporary_folder_is_refused_only_without_files_in_memory"), "needs noexec"),
    ("trust", Some("no_private_copy_remains_after_the_stop"), "Windows keeps a file that is mapped"),
    ("trust", Some("dependencies_of_a_library_are_not_loaded_from_the_current_directory"), "is about LD_LIBRARY_PATH"),
    ("trust", Some("a_library_or_folder_of_another_user_is_refused"), RIGHTS),
];

const LINES: &str = "gives its commands as lines of a Unix shell";
const MEMORY: &str = "measures memory as Linux counts it; Wine fills what Linux only promises";
const RIGHTS: &str = "is about owners and rights as Unix has them";
const SHELL: &str = "follows a document of which the commands are a Unix shell's";
const UNIX_SOCKET: &str = "needs Unix sockets";

/// Returns the command that `VKOG_WINDOWS` names, with a further word: `build` builds for Windows, `run` runs a program.
pub(crate) fn command(word: &str) -> Option<Command> {
    let named = std::env::var("VKOG_WINDOWS").ok()?;
    let mut words = named.split_whitespace();
    let mut command = Command::new(words.next()?);
    command.args(words).arg(word);
    Some(command)
}

pub(crate) fn test(quick: bool) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let unset = "VKOG_WINDOWS is not set; it names what builds and runs programs for Windows: \"ci/windows.sh DIR\"";
    let mut all = command("build").ok_or(unset)?;
    all.args(["--workspace", "--exclude", "vkog-tests", "--exclude", "xtask", "--exclude", "vkog-etcd"]);
    let output = all.arg("--message-format=json-render-diagnostics").output()?;
    let messages = String::from_utf8(output.stderr)?;
    eprint!("{messages}");
    if !output.status.success() || messages.lines().any(|line| line.starts_with("warning")) {
        return Err("it does not build for Windows without a warning".into());
    }
    let program = build::artifacts(&output.stdout, &["vkog"])?.into_iter().next().ok_or("cargo built no vkog")?.file;
    // Wine's own server comes with the first program and goes with the last. While this program runs, the server is alive, and writes to
    // the streams of no test. The folder of a program is ready for Wine by then, too.
    let mut kept = command("run").ok_or(unset)?;
    kept.arg(&program).args(["--no-plugins", "--listen", "127.0.0.1:0", "--file", "target/windows.vkog"]);
    let mut kept = kept.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut line = String::new();
    let listens = kept.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    let tested = if listens.is_some() && line.starts_with("listening on ") {
        // Wine loses a connection that comes at the very start of a server once in some hundred starts.
        SELECTION.run(quick, 2, &[])
    } else {
        Err(format!("vkog.exe does not listen, it says {line:?}").into())
    };
    kept.kill()?;
    kept.wait()?;
    tested
}
