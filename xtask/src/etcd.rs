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
    ("batch", Some("a_batch_of_gets_sees_a_constant_sum_during_transfers"), REVISIONS),
    ("batch", Some("a_failed_precondition_fails_a_batch_of_128_operations_and_is_named"), LARGE),
    ("batch", Some("an_unreadable_batch_is_refused_with_position_and_reason"), REVISIONS),
    ("batch", Some("each_operation_has_its_result_in_order_and_in_the_format_of_the_request"), REVISIONS),
    ("batch", Some("later_operations_see_the_results_of_earlier_ones"), REVISIONS),
    ("before_request", Some("before_request_runs_once_for_each_request_for_entries"), SINCE),
    ("blocking", Some("plugins_and_check_report_whether_a_plugin_blocks"), PLUGINS),
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
    ("counters", Some("increments_of_many_clients_add_up_exactly"), "adds to few counters at a time; some get 409"),
    ("delete_prefix", Some("a_deletion_continues_after_a_kill_and_its_steps_share_syncs"), LARGE),
    ("deployment", None, PROGRAM),
    ("disk_trouble", None, FILES),
    ("dist", None, PROGRAM),
    ("documents", None, PROGRAM),
    ("durability", None, FILES),
    ("evicting", Some("racing_writers_are_not_refused_and_the_count_stays_exact"), TWICE),
    ("examples", Some("audit_writes_exactly_one_line_for_every_change"), REVISIONS),
    ("examples", Some("bearer_does_not_start_without_a_token"), PLUGINS),
    ("exit_statuses", None, PROGRAM),
    ("expiring", Some("a_batch_changes_expiries_and_writes_in_one_step"), REVISIONS),
    ("expiry", None, "counts syncs of the log"),
    ("generated_clients", None, BEFORE),
    ("go_files", None, FILES),
    ("hooks", Some("a_hook_sees_the_whole_request"), REVISIONS),
    ("hooks", Some("guards_before_a_refusal_are_undone_the_last_first_and_no_after_hook_is_called"), TWICE),
    ("hostile", None, BEFORE),
    ("http2", None, BEFORE),
    ("hygiene", None, PROGRAM),
    ("index", Some("after_a_kill_under_load_the_index_is_exact"), FILES),
    ("index", Some("an_entry_and_its_index_entries_have_consecutive_revisions"), REVISIONS),
    ("index", Some("the_index_of_a_store_that_was_written_without_the_plugin_is_built_while_clients_write"), FILES),
    ("key_prefix", Some("a_client_with_a_key_prefix_sees_what_it_would_see_alone"), REVISIONS),
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
    ("metrics", Some("the_metrics_count_exactly_the_requests_that_were_sent"), TWICE),
    ("name_index", None, PROGRAM),
    ("order", Some("stages_and_names_order_plugins_by_default"), PLUGINS),
    ("order", Some("the_configured_order_comes_first_and_a_reload_changes_it"), PLUGINS),
    ("ownership", None, FILES),
    ("packages", None, PROGRAM),
    ("page", None, BEFORE),
    ("panics", Some("a_panic_in_create_or_start_stops_the_start_and_changes_nothing"), FILES),
    ("panics", Some("concurrent_panics_leave_the_server_and_the_count_intact"), TWICE),
    ("plugin_commands", None, PROGRAM),
    ("plugin_files", None, PROGRAM),
    ("plugin_model", None, FILES),
    ("proxies", None, BEFORE),
    ("quarantine", Some("panics_in_every_hook_are_counted_and_disturb_no_other_request"), TWICE),
    ("queries", Some("the_last_event_id_may_stand_in_the_query"), HISTORY),
    ("queries", Some("unknown_parameters_are_ignored"), HISTORY),
    ("reference", None, PROGRAM),
    ("reload", Some("a_client_that_does_not_read_its_response_delays_no_reload"), LARGE),
    ("reload", Some("a_reload_loads_removes_and_follows_moved_libraries"), PLUGINS),
    ("reload", Some("a_reload_keeps_a_required_plugin_whose_library_contains_another_one"), PLUGINS),
    ("route_attacks", Some("a_call_in_flight_ends_in_the_plugin_that_a_reload_removes"), PLUGINS),
    ("routes", Some("plugins_and_the_openapi_document_list_the_routes"), PLUGINS),
    ("service", None, PROGRAM),
    ("shared_store", None, "uses another shared store"),
    ("shell", None, PROGRAM),
    ("starting", None, FILES),
    ("statistics", Some("calls_and_refusals_are_exact_also_if_an_earlier_plugin_refuses"), TWICE),
    ("stopping", Some("a_stop_ends_within_15_seconds_wherever_a_plugin_hangs"), PLUGINS),
    ("store", None, FILES),
    ("store_commands", None, FILES),
    ("timelines", None, FILES),
    ("tls", None, BEFORE),
    ("top", None, PROGRAM),
    ("transforms", Some("nothing_on_disk_and_in_exports_is_plain_text"), FILES),
    ("transforms", Some("the_order_of_the_chain_decides_about_writes_and_the_record_about_reads"), FILES),
    ("trust", None, PROGRAM),
    ("unfinished_files", None, FILES),
    ("watch", Some("a_client_with_fifty_reconnects_receives_each_change_once_in_order"), HISTORY),
    ("watch", Some("a_plugin_that_refuses_the_client_ends_its_watch"), REVISIONS),
    ("watch", Some("a_reconnecting_client_resumes_after_its_last_event"), REVISIONS),
    ("watch", Some("a_revision_before_the_change_history_is_410_also_after_a_restart"), REVISIONS),
    ("watch", Some("a_watch_omits_expired_entries_and_delivers_their_removal"), HISTORY),
    ("watch", Some("a_watcher_that_stops_reading_delays_no_other_client"), REVISIONS),
    ("watch", Some("an_event_has_the_revision_and_describes_the_entry"), REVISIONS),
    ("watch", Some("an_http_1_0_client_gets_a_stream_that_ends_with_its_connection"), HISTORY),
    ("wording", None, PROGRAM),
];

const BEFORE: &str = "is about connections, tokens and clients, which do not depend on the store";
const FILES: &str =
    "is about a store in files: what is in them, their locks, syncs, snapshots, and commands that read them";
const HISTORY: &str = "watches since revision 0; the history of a shared store begins when the server starts";
const LARGE: &str = "sends more than etcd accepts: 125 keys in a batch, 1.5 MiB in a write";
const MEMORY: &str = "measures memory, with values or batches that are larger than etcd accepts";
const PLUGINS: &str = "expects exactly its own plugins in a list, and here etcd is one more";
const PROGRAM: &str = "is about the program, its plugins as files, or its documents";
const REVISIONS: &str =
    "expects a revision for each change; in etcd, all changes of a step have the same one, and other keys take some";
const SINCE: &str = "needs the changes since a revision; a shared store has full exports only";
const SLOW: &str = "makes store calls one after the other, as many as a disk syncs, but not a cluster";
const TWICE: &str =
    "counts guards; those of a write that is rejected run twice, because the entries are confirmed first";

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
