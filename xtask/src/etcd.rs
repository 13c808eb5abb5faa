//! `cargo xtask etcd`: runs the black-box tests with the stores of all servers in etcd instead of files. With `--quick`, it runs
//! the tests whose outcome depends on the store most, as CI does for each submission.

use std::fs;
use std::process::Command;

use crate::bench::peers::Peer;
use crate::black_box::Selection;
use crate::{Result, build, test};

const SELECTION: Selection = Selection { command: "etcd", quick: QUICK, left_out: LEFT_OUT };

/// The modules of the black-box tests, and single tests of further ones, that `--quick` runs: entries, batches, listings, watches, and
/// what plugins do with them.
const QUICK: &[(&str, Option<&str>)] = &[
    ("asking", Some("store_calls_in_hooks_and_a_reload_do_not_deadlock")),
    ("hyper::batch", None),
    ("hyper::delete_prefix", None),
    ("hyper::hooks", None),
    ("hyper::index", None),
    ("hyper::routes", None),
    ("hyper::table", None),
    ("hyper::transforms", None),
    ("hyper::values", None),
    ("keys", None),
    ("openapi", Some("the_openapi_document_is_public")),
    ("ranges", None),
    ("watch", Some("a_stop_ends_all_watches_and_waits_for_none")),
];

/// The tests that are left out: the module, the test (none for the whole module), the reason. A module without an engine in front
/// is left out for all.
const LEFT_OUT: &[(&str, Option<&str>, &str)] = &[
    ("access", None, BEFORE),
    ("asking", Some("ticks_remove_entries_through_the_chain_and_the_count_of_bytes_stays_exact"), SLOW),
    ("authoring", None, PROGRAM),
    ("backup", Some("a_restore_replaces_a_store_only_with_force_and_keeps_its_files"), FILES),
    ("backup", Some("a_stale_etag_of_a_life_that_a_restore_ended_matches_nothing"), FILES),
    ("backup", Some("an_incremental_backup_needs_the_history"), SINCE),
    ("backup", Some("check_and_export_read_a_prefix_of_the_history_beside_a_server"), FILES),
    ("backup", Some("changes_of_a_client_with_a_key_prefix_are_restored_behind_that_prefix"), SINCE),
    ("backup", Some("every_backup_under_16_writers_is_the_state_at_its_revision"), SINCE),
    ("batch", Some("a_batch_has_at_most_1024_operations_and_none_of_them_is_too_large"), LARGE),
    ("batch", Some("a_failed_precondition_fails_a_batch_of_128_operations_and_is_named"), LARGE),
    ("before_request", Some("before_request_runs_once_for_each_request_for_entries"), SINCE),
    ("browsers", None, BEFORE),
    ("building", None, PROGRAM),
    ("chromium", None, BEFORE),
    ("client", Some("a_large_value_is_sent_from_a_pipe_and_got_into_a_file"), LARGE),
    ("client_certificates", None, BEFORE),
    ("clients", None, BEFORE),
    ("codings", Some("a_coding_passes_batches_watches_and_exports"), FILES),
    ("command_line", None, PROGRAM),
    ("connections", None, BEFORE),
    ("cors", None, BEFORE),
    ("delete_prefix", Some("a_deletion_continues_after_a_kill_and_its_steps_share_syncs"), LARGE),
    ("deployment", None, PROGRAM),
    ("disk_trouble", None, FILES),
    ("dist", None, PROGRAM),
    ("documents", None, PROGRAM),
    ("durability", None, FILES),
    ("exit_statuses", None, PROGRAM),
    ("expiry", None, "counts syncs of the log"),
    ("generated_clients", None, BEFORE),
    ("go_files", None, FILES),
    ("hostile", None, BEFORE),
    ("http2", None, BEFORE),
    ("hygiene", None, PROGRAM),
    ("index", Some("after_a_kill_under_load_the_index_is_exact"), FILES),
    ("index", Some("the_index_of_a_store_that_was_written_without_the_plugin_is_built_while_clients_write"), FILES),
    ("keys", Some("all_keys_are_listed_once_and_in_order_while_eight_clients_write"), FILES),
    ("latency", None, BEFORE),
    ("listening", None, BEFORE),
    ("lives", None, FILES),
    ("loading", None, PROGRAM),
    ("log_reader", None, PROGRAM),
    ("memory", None, MEMORY),
    ("memory_accounting", None, MEMORY),
    ("memory_limit", None, MEMORY),
    ("metrics", Some("requests_connections_and_syncs_are_counted_to_the_last_one"), FILES),
    ("name_index", None, PROGRAM),
    ("ownership", None, FILES),
    ("packages", None, PROGRAM),
    ("page", None, BEFORE),
    ("panics", Some("a_panic_in_create_or_start_stops_the_start_and_changes_nothing"), FILES),
    ("plugin_commands", None, PROGRAM),
    ("plugin_files", None, PROGRAM),
    ("plugin_model", None, FILES),
    ("proxies", None, BEFORE),
    ("reference", None, PROGRAM),
    ("reload", Some("a_client_that_does_not_read_its_response_delays_no_reload"), LARGE),
    ("service", None, PROGRAM),
    ("shared_store", None, "uses another shared store"),
    ("shell", None, PROGRAM),
    ("starting", None, FILES),
    ("store", None, FILES),
    ("store_commands", None, FILES),
    ("timelines", None, FILES),
    ("tls", None, BEFORE),
    ("top", None, PROGRAM),
    ("transforms", Some("nothing_on_disk_and_in_exports_is_plain_text"), FILES),
    ("transforms", Some("the_order_of_the_chain_decides_about_writes_and_the_record_about_reads"), FILES),
    ("trust", None, PROGRAM),
    ("unfinished_files", None, FILES),
    ("watch", Some("a_restart_ends_the_change_history"), HISTORY),
    ("wording", None, PROGRAM),
];

const BEFORE: &str = "is about connections, tokens and clients, which do not depend on the store";
const FILES: &str =
    "is about a store in files: what is in them, their locks, syncs, snapshots, and commands that read them";
const HISTORY: &str = "is about the revisions before a start; the history of a shared store begins with it";
const LARGE: &str = "sends more than etcd accepts: 125 keys in a batch, 1.5 MiB in a write";
const MEMORY: &str = "measures memory, with values or batches that are larger than etcd accepts";
const PROGRAM: &str = "is about the program, its plugins as files, or its documents";
const SINCE: &str = "needs the changes since a revision; a shared store has full exports only";
const SLOW: &str = "makes store calls one after the other, as many as a disk syncs, but not a cluster";

/// Why the tests are skipped where etcd is missing.
pub(crate) const MISSING: &str = "etcd is not installed: apt-get install etcd-server etcd-client";

pub(crate) fn is_installed() -> bool {
    test::is_installed(Command::new("etcd").arg("--version"))
}

pub(crate) fn test(quick: bool) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let folder = build::root().join("target/etcd");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    if !is_installed() {
        println!("skipped: {MISSING}");
        return Ok(());
    }
    let members = Peer::etcd(&folder, 1)?;
    let address = format!("127.0.0.1:{}", members[0].port);
    SELECTION.run(quick, 1, &[("VKOG_ETCD", address.as_str())])
}
