//! As much of a host of the time of vkog-plugin-api 1.0.0 as it takes to load a plugin, with the checks of that time, and to
//! call its hooks: `abi-1-frozen-host LIBRARY SETTINGS HOOK...` prints what each of them answers.

use std::ffi::OsString;

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RErr, RNone, ROk, ROption, RSlice, RStr};
use vkog_plugin_api::Verb;
use vkog_plugin_api::abi::{
    HOOK_NAMES, HookEntry, HostApi, Outcome, PluginModuleRef, RawCall, RawHeader, RawHost, ScanFn,
};

unsafe extern "C" fn log(_: *const (), level: u32, line: RStr<'_>) {
    println!("log {level}: {line}");
}

unsafe extern "C" fn max_size(_: *const ()) -> u64 {
    1000
}

unsafe extern "C" fn message(_: *mut (), text: RStr<'_>) {
    println!("message: {text}");
}

unsafe extern "C" fn refusal_header(_: *mut (), name: RStr<'_>, value: RStr<'_>) {
    println!("header {name}: {value}");
}

unsafe extern "C" fn replace_value(_: *mut (), value: RSlice<'_, u8>) {
    println!("value: {}", String::from_utf8_lossy(value.as_slice()));
}

unsafe extern "C" fn set_details(_: *mut (), details: RSlice<'_, u8>) {
    println!("details: {}", String::from_utf8_lossy(details.as_slice()));
}

unsafe extern "C" fn header(_: *mut (), _: RStr<'_>) -> ROption<RSlice<'static, u8>> {
    RNone
}

unsafe extern "C" fn header_at(_: *mut (), _: usize) -> ROption<RawHeader<'static>> {
    RNone
}

unsafe extern "C" fn client(_: *mut ()) -> RStr<'static> {
    RStr::empty()
}

unsafe extern "C" fn scan(_: *mut (), _: *mut (), _: ScanFn) {}

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [library, settings, hooks @ ..] = &*arguments else { panic!("LIBRARY SETTINGS HOOK...") };
    // SAFETY: the test built this library.
    let library = unsafe { libloading::Library::new(library) }.expect("it opens");
    // SAFETY: the symbol of every abi_stable library; its magic number is checked by `upgrade`.
    let found: AbiHeaderRef =
        unsafe { *library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()).expect("a plugin") };
    std::mem::forget(library);
    let theirs = found.upgrade().expect("abi_stable 0.11");
    let version = theirs.version_strings().version.to_string();
    assert!(version.starts_with("1."), "another major version: {version}");
    let their_layout = theirs.layout().expect("a layout");
    let our_layout = <PluginModuleRef as StableAbi>::LAYOUT;
    if check_layout_compatibility(our_layout, their_layout).is_err()
        && let Err(error) = check_layout_compatibility(their_layout, our_layout)
    {
        println!("cannot load: other-layout: {error}");
        std::process::exit(1);
    }
    // SAFETY: the layout was checked just now.
    let module = unsafe { theirs.init_root_module_with_unchecked_layout::<PluginModuleRef>() }.expect("a module");
    println!("{} built with vkog-plugin-api {version}", module.name());
    for entry in module.hooks().iter().filter(|entry| entry.id as usize >= HOOK_NAMES.len()) {
        assert!(entry.flags & HookEntry::REQUIRED == 0, "missing-hook: {}", entry.id);
        println!("left out: hook {}", entry.id);
    }

    let api = HostApi {
        log,
        max_size,
        message,
        refusal_header,
        replace_value,
        set_details,
        header,
        header_at,
        client,
        scan,
    };
    let host = RawHost { api: api.leak_into_prefix(), cx: std::ptr::null() };
    let settings = settings.to_str().expect("settings are text");
    // SAFETY: the layout was checked.
    let instance = match unsafe { module.create()(host, settings.into()) } {
        ROk(instance) => instance,
        RErr(failure) => panic!("not created: {}", failure.message),
    };
    for hook in hooks {
        let id = HOOK_NAMES.iter().position(|name| *hook == **name).expect("a hook of this version");
        let entry = *module.hooks().iter().find(|entry| entry.id as usize == id).expect("a hook of the plugin");
        let call = RawCall {
            key: "key".into(),
            value: b"value".as_slice().into(),
            content_type: "text/plain".into(),
            query: "".into(),
            before: None,
            after: None,
            arrived: 7,
            verb: Verb::Put,
            flags: 0,
            revision: 8,
            reserved: 0,
            cx: std::ptr::null_mut(),
        };
        // SAFETY: the layout was checked, and the instance is that of this module.
        let Outcome { kind, status, .. } = unsafe { (entry.hook.call)(instance.ptr, &call) };
        println!("{}: kind {kind}, status {status}", HOOK_NAMES[id]);
    }
    // SAFETY: once, and nothing of it is under way.
    assert!(unsafe { module.destroy()(instance) }.is_none(), "it panicked while it was dropped");
    println!("destroyed");
}
