//! The boundary in numbers. A change of one of them is a new major version of `vkog-plugin-api`.
#![cfg(target_pointer_width = "64")]

use std::mem::{align_of, offset_of, size_of};

use vkog_plugin_api::abi::*;

macro_rules! layout {
    ($type:ty: $size:literal, $align:literal $(, $field:ident at $offset:literal)*) => {
        assert_eq!((size_of::<$type>(), align_of::<$type>()), ($size, $align), stringify!($type));
        $(assert_eq!(offset_of!($type, $field), $offset, concat!(stringify!($type), ".", stringify!($field)));)*
    };
}

#[test]
fn the_abi_types_have_fixed_sizes_and_offsets() {
    layout!(RawCall<'static>: 120, 8, key at 0, value at 16, content_type at 32, query at 48, before at 64, after at 72,
        arrived at 80, verb at 88, flags at 92, revision at 96, reserved at 104, cx at 112);
    layout!(RawEntry<'static>: 72, 8, value at 0, content_type at 16, details at 32, revision at 48, reserved at 56);
    layout!(RawHeader<'static>: 32, 8, name at 0, value at 16);
    layout!(Outcome: 8, 4, kind at 0, status at 2, bits at 4);
    layout!(HookEntry: 16, 8, id at 0, flags at 4, hook at 8);
    layout!(HookFn: 8, 8);
    layout!(ScanFn: 8, 8);
    layout!(RawHost: 16, 8, api at 0, cx at 8);
    layout!(RawInstance: 8, 8);
    layout!(RawFailure: 40, 8, kind at 0, reserved at 4, message at 8);
    layout!(PluginModule: 120, 8, name at 0, version at 16, unwinds at 32, stage at 36, create at 40, destroy at 48,
        hooks at 56, routes at 72, required at 88, backend at 104);
    layout!(RawAsk<'static>: 112, 8, key at 0, value at 16, content_type at 32, query at 48, headers at 64, verb at 80,
        flags at 84, revision at 88, reserved at 96);
    layout!(RawAnswer<'static>: 72, 8, entry at 0, message at 8, plugin at 24, revision at 40, status at 48, flags at 52,
        reserved at 56);
    layout!(AnswerFn: 8, 8);
    layout!(EachFn: 8, 8);
    layout!(UnreadableFn: 8, 8);
    layout!(UpdateFn: 8, 8);
    layout!(RawState: 16, 8, ptr at 0, drop at 8);
    layout!(RawRoute: 72, 8, method at 0, path at 16, summary at 32, permission at 48, flags at 52, reserved at 56);
    layout!(HostApi: 264, 8, log at 0, max_size at 8, message at 16, refusal_header at 24, replace_value at 32,
        set_details at 40, header at 48, header_at at 56, client at 64, scan at 72, ask at 80, for_each at 88,
        now at 96, metric at 104, asker at 112, ask_each at 120, replace_content_type at 128, state at 136, token at 144, method at 152,
        set_key_prefix at 160, add_write at 168, parameter at 176, respond at 184, send_part at 192, batch at 200,
        update at 208, for_each_from at 216, sample at 224, switch_off at 232, leads at 240,
        for_each_readable at 248, depend_on at 256);
}

#[test]
fn the_abi_types_of_backends_have_fixed_sizes_and_offsets() {
    layout!(RawWrite<'static>: 64, 8, id at 0, conditions at 8, changes at 24, reserved at 40);
    layout!(RawCondition<'static>: 32, 8, key at 0, revision at 16, reserved at 24);
    layout!(RawChange<'static>: 48, 8, key at 0, record at 16, flags at 32, reserved at 40);
    layout!(RawLoaded<'static>: 48, 8, key at 0, record at 16, revision at 32, reserved at 40);
    layout!(RawCommitOutcome<'static>: 48, 8, kind at 0, status at 4, revision at 8, message at 16, reserved at 32);
    layout!(RawMember<'static>: 40, 8, id at 0, about at 16, reserved at 32);
    layout!(RawStatus<'static>: 152, 8, engine at 0, engine_version at 16, full at 32, entry_prefix at 48, id at 64,
        members at 80, size at 96, quota at 104, flags at 112, reserved at 120);
    layout!(StatusFn: 8, 8);
    layout!(RawFeed: 16, 8, api at 0, cx at 8);
    layout!(FeedApi: 48, 8, load at 0, loaded at 8, apply at 16, outcome at 24, confirmed at 32, connected at 40);
    layout!(BackendModule: 64, 8, scheme at 0, open at 16, commit at 24, confirm at 32, status at 40, announce at 48,
        close at 56);
}

#[test]
fn the_flags_and_kinds_of_backends_keep_their_numbers() {
    assert_eq!((RawChange::DELETE, RawChange::EXPIRED, RawStatus::CONNECTED, RawStatus::LEADS), (1, 2, 1, 2));
    let kinds =
        [RawCommitOutcome::COMMITTED, RawCommitOutcome::CONFLICT, RawCommitOutcome::REFUSED, RawCommitOutcome::DROPPED];
    assert_eq!(kinds, [0, 1, 2, 3]);
}

#[test]
fn the_flags_of_a_hook_keep_their_bits() {
    assert_eq!((HookEntry::REQUIRED, HookEntry::BLOCKS), (1, 2));
}

#[test]
fn verbs_stages_and_hooks_keep_their_numbers() {
    use vkog_plugin_api::{Stage, Verb};
    assert_eq!([Verb::Get, Verb::Post, Verb::Put, Verb::Delete].map(|verb| verb as u32), [0, 1, 2, 3]);
    let stages = [Stage::Access, Stage::Transform, Stage::Policy, Stage::Accounting, Stage::Observe];
    assert_eq!(stages.map(|stage| stage as u32), [0, 1, 2, 3, 4]);
    assert_eq!(
        HOOK_NAMES.join(" "),
        "before_get before_post before_put before_delete guard_get guard_post guard_put guard_delete after_get \
         after_post after_put after_delete undo_get undo_post undo_put undo_delete start tick \
         settings_changed make_room read_get before_request serve serve_update applied"
    );
}
