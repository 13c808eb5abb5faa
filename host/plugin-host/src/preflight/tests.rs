//! Tests of the preflight with files that are made here, of all formats.

use super::*;

/// A Mach-O library for x86-64 of one segment, which says that it has `filesize` bytes, and a folder to look for others.
fn mach_o(filesize: u64, rpath: &[u8; 8]) -> Vec<u8> {
    // Magic number, processor, kind of it, kind of file (a dynamic library), commands, their size, flags, reserved.
    let header: [u32; 8] = [0xfeed_facf, 0x0100_0007, 3, 6, 2, 72 + 24, 0, 0];
    let mut file: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    file.extend([0x19_u32, 72].into_iter().flat_map(u32::to_le_bytes));
    file.extend(b"__TEXT\0\0\0\0\0\0\0\0\0\0");
    file.extend([0, filesize, 0, filesize].into_iter().flat_map(u64::to_le_bytes));
    file.extend([5_u32, 5, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    file.extend([0x8000_001c_u32, 24, 12].into_iter().flat_map(u32::to_le_bytes));
    file.extend(rpath);
    file.extend([0; 4]);
    file
}

/// An ELF library for x86-64 that has a section of 16 bytes at its end, behind the table that lists it.
fn elf_with_a_section_behind_the_table() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Kind of file (a dynamic library), processor; version; entry, program headers, section headers; flags.
    file.extend([3_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    file.extend(1_u32.to_le_bytes());
    file.extend([0_u64, 0, 64].into_iter().flat_map(u64::to_le_bytes));
    file.extend(0_u32.to_le_bytes());
    // Size of this header; size and number of program headers and of section headers; section with the names.
    file.extend([64_u16, 56, 0, 64, 3, 1].into_iter().flat_map(u16::to_le_bytes));
    file.extend([0; 64]);
    // A table of strings (3) with one empty text, then 16 bytes of the program (1).
    for (kind, offset, size) in [(3, 256, 1), (1, 257, 16)] {
        // Name, kind; flags, address, offset, size; link, info; alignment, size of an entry.
        file.extend([0_u32, kind].into_iter().flat_map(u32::to_le_bytes));
        file.extend([0_u64, 0, offset, size].into_iter().flat_map(u64::to_le_bytes));
        file.extend([0_u32, 0].into_iter().flat_map(u32::to_le_bytes));
        file.extend([1_u64, 0].into_iter().flat_map(u64::to_le_bytes));
    }
    file.push(0);
    file.extend([0xcc; 16]);
    file
}

#[test]
fn an_elf_file_is_cut_off_if_a_section_behind_its_tables_is() {
    let whole = elf_with_a_section_behind_the_table();
    refused(&whole[..whole.len() - 1], "cut-off", "sections");
    let linux = cfg!(all(target_arch = "x86_64", target_os = "linux"));
    refused(&whole, if linux { "no-plugin" } else { "wrong-architecture" }, "");
}

/// A Mach-O file with one part, for this processor.
fn fat(processor: u32, part: &[u8]) -> Vec<u8> {
    let header: [u32; 7] = [0xcafe_babe, 1, processor, 3, 28, part.len() as u32, 0];
    let mut file: Vec<u8> = header.into_iter().flat_map(u32::to_be_bytes).collect();
    file.extend(part);
    file
}

#[track_caller]
fn refused(file: &[u8], code: &str, words: &str) {
    let fault = check(file).expect_err("it is refused");
    assert!(fault.code() == code && fault.to_string().contains(words), "[{}] {fault}", fault.code());
}

/// The same library, but that it needs another one instead of having a folder to look for it.
fn mach_o_that_needs(library: &[u8; 8]) -> Vec<u8> {
    let mut file = mach_o(144, b"/opt/lib");
    file.truncate(32 + 72);
    // The size of all commands; then a command: where the name begins, a time, two versions, the name.
    file[20..24].copy_from_slice(&(72_u32 + 40).to_le_bytes());
    file.extend([0x0c_u32, 40, 24, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    file.extend(library);
    file.extend([0; 8]);
    file
}

#[test]
fn a_mach_o_file_may_need_libraries_by_absolute_paths_only() {
    for (library, is_refused) in
        [(b"/lib/a\0\0", false), (b"@rpath/a", false), (b"@loader_", true), (b"relative", true)]
    {
        let fault = check(&mach_o_that_needs(library)).expect_err("it has no plugin");
        let text = String::from_utf8_lossy(library);
        let is_path = fault.code() == "search-path" && fault.to_string().contains(&format!("library is \"{text}"));
        assert!(is_path == is_refused && fault.code() != "cut-off", "[{}] {fault}", fault.code());
    }
    // Where to look for `@rpath` is no path itself.
    refused(&mach_o(128, b"@rpath/a"), "search-path", "RPATH is \"@rpath/a\"");
}

#[test]
fn a_mach_o_file_is_cut_off_for_another_system_or_without_a_plugin() {
    let whole = mach_o(128, b"/opt/lib");
    refused(&mach_o(129, b"/opt/lib"), "cut-off", "segments");
    refused(&whole[..100], "cut-off", "commands to the linker");
    refused(&mach_o(128, b"@loader_"), "search-path", "RPATH is \"@loader_\"");
    if cfg!(target_arch = "x86_64") {
        let apple = cfg!(target_vendor = "apple");
        let (code, words) = if apple { ("no-plugin", "") } else { ("wrong-architecture", "X86_64 (MachO)") };
        refused(&whole, code, words);
        refused(&fat(0x0100_0007, &whole), code, words);
        refused(&fat(0x0100_0007, &whole)[..100], "cut-off", "part for this processor");
        refused(&fat(0x0100_000c, &whole), "wrong-architecture", "Aarch64 (MachO)");
    }
}

/// Asserts that neither a part is missing nor the linker would search in a wrong place.
#[track_caller]
fn complete(file: &[u8]) {
    let fault = check(file).expect_err("it has no plugin");
    assert!(!["cut-off", "search-path", "library-path"].contains(&fault.code()), "[{}] {fault}", fault.code());
}

fn le<const N: usize>(numbers: [u32; N]) -> impl Iterator<Item = u8> {
    numbers.into_iter().flat_map(u32::to_le_bytes)
}

/// A library for Windows on x86-64: headers, one section with the name of the library that it needs, two symbols and
/// their names. A signature of eight bytes follows if `is_signed`.
fn pe_that_needs(library: &str, is_signed: bool) -> Vec<u8> {
    const HEADERS: u32 = 64 + 4 + 20 + 240 + 40;
    const IMPORTS: u32 = 2 * 20;
    const AT: u32 = 0x1000;
    let section = IMPORTS + library.len() as u32 + 1;
    let symbols = HEADERS + section;
    let names = symbols + 2 * 18;
    let end = names + 4 + 6;
    let mut file = b"MZ".to_vec();
    file.resize(60, 0);
    file.extend(le([64]));
    file.extend(b"PE\0\0");
    // Processor, sections; time, symbols, their number; size of the next header, flags (a library).
    file.extend([0x8664_u16, 1].into_iter().flat_map(u16::to_le_bytes));
    file.extend(le([0, symbols, 2]));
    file.extend([240_u16, 0x2022].into_iter().flat_map(u16::to_le_bytes));
    // Format and version of the linker; sizes and addresses; address of the image; alignments; versions.
    file.extend(le([0x020b, section, 0, 0, 0, AT, 0, 0x1_0000, 0x1000, 0x200, 6, 0, 6, 0]));
    // Size of the image and of the headers, checksum, kind; stack and heap; flags, the number of tables.
    file.extend(le([0x2000, HEADERS, 0, 2]));
    file.extend([0; 32]);
    file.extend(le([0, 16]));
    for table in 0..16 {
        file.extend(match table {
            1 => le([AT, IMPORTS]),
            // Its address is an offset in the file.
            4 if is_signed => le([end, 8]),
            _ => le([0, 0]),
        });
    }
    file.extend(b".data\0\0\0");
    file.extend(le([section, AT, section, HEADERS, 0, 0, 0, 0x4000_0040]));
    assert_eq!(file.len(), HEADERS as usize);
    file.extend(le([AT + 20, 0, 0, AT + IMPORTS, AT + 20]));
    file.extend([0; 20]);
    file.extend(library.bytes().chain([0]));
    file.extend([0; 2 * 18]);
    file.extend(le([10]));
    file.extend(b"names\0");
    if is_signed {
        file.extend([0xaa; 8]);
    }
    file
}

#[test]
fn a_pe_file_is_cut_off_if_its_symbols_names_or_signature_are() {
    let (plain, mut signed) = (pe_that_needs("other.dll", false), pe_that_needs("other.dll", true));
    complete(&plain);
    complete(&signed);
    refused(&plain[..plain.len() - 1], "cut-off", "names of symbols");
    refused(&plain[..plain.len() - 7], "cut-off", "symbols");
    refused(&signed[..signed.len() - 1], "cut-off", "signature");
    signed.push(0);
    complete(&signed);
    refused(&plain[..200], "cut-off", "headers");
    // A library without symbols may end with its sections.
    let mut stripped = plain;
    stripped[76..80].fill(0);
    stripped.truncate(stripped.len() - 46);
    complete(&stripped);
}

#[test]
fn a_pe_file_may_need_libraries_by_bare_names_only() {
    for library in ["folder/other.dll", "..\\other.dll", "C:other.dll"] {
        refused(&pe_that_needs(library, false), "search-path", &format!("import is \"{library}\""));
    }
}

/// An ELF library for x86-64 without sections. Its dynamic section has an entry of this kind with this text.
fn elf_with(kind: u64, text: &str) -> Vec<u8> {
    const DYNAMIC: u64 = 64 + 2 * 56;
    const STRINGS: u64 = DYNAMIC + 4 * 16;
    let len = STRINGS + 1 + text.len() as u64 + 1;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Kind of file (a dynamic library), processor; version; entry, program headers, section headers; flags.
    file.extend([3_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    file.extend(le([1]));
    file.extend([0_u64, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    file.extend(le([0]));
    // Size of this header; size and number of program headers and of section headers; section with the names.
    file.extend([64_u16, 56, 2, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    // What is loaded (1), which is all of it, and the dynamic section (2).
    for (segment, at, size) in [(1, 0, len), (2, DYNAMIC, STRINGS - DYNAMIC)] {
        file.extend(le([segment, 4]));
        file.extend([at, at, at, size, size, 8].into_iter().flat_map(u64::to_le_bytes));
    }
    // The entry, the address (5) and the size (10) of the strings, the end.
    for (kind, value) in [(kind, 1), (5, STRINGS), (10, len - STRINGS), (0, 0)] {
        file.extend([kind, value].into_iter().flat_map(u64::to_le_bytes));
    }
    file.push(0);
    file.extend(text.bytes().chain([0]));
    file
}

#[test]
fn an_elf_file_may_make_the_linker_search_in_absolute_folders_only() {
    const NEEDED: u64 = 1;
    const RPATH: u64 = 15;
    const RUNPATH: u64 = 29;
    complete(&elf_with(NEEDED, "libother.so.1"));
    complete(&elf_with(NEEDED, "/opt/lib/libother.so.1"));
    complete(&elf_with(RPATH, "/opt/lib"));
    complete(&elf_with(RUNPATH, "/opt/lib:/opt/lib64"));
    for (kind, name, text) in [
        (RPATH, "RPATH", "lib"),
        (RPATH, "RPATH", "$ORIGIN"),
        (RUNPATH, "RUNPATH", "lib"),
        (NEEDED, "NEEDED", "./libother.so.1"),
        (NEEDED, "NEEDED", "$ORIGIN/libother.so.1"),
        // Libraries that replace symbols of this one.
        (0x7fff_fffd, "NEEDED", "lib/auxiliary.so"),
        (0x7fff_ffff, "NEEDED", "lib/filter.so"),
    ] {
        refused(&elf_with(kind, text), "search-path", &format!("{name} is \"{text}\""));
    }
    let file = elf_with(RPATH, "/opt/lib");
    refused(&file[..file.len() - 1], "cut-off", "");
}

#[test]
fn a_list_of_folders_is_astray_if_one_is_relative_empty_or_a_placeholder() {
    for paths in ["/a", "/a:/b", "/a;/b", "/a\n/b"] {
        assert!(!is_astray(paths), "{paths:?}");
    }
    for paths in ["", "a", ":/a", "/a:", "/a;", "/a;b", "/a\nb", "$ORIGIN", "/a/$LIB"] {
        assert!(is_astray(paths), "{paths:?}");
    }
}

#[test]
fn a_file_that_is_no_library_is_refused_with_its_beginning() {
    refused(b"", "not-a-library", "nothing: it is empty");
    refused(b"#!/bin/sh\necho 'no library'", "not-a-library", "\"#!/bin/sh\\necho \\'\"");
}

#[test]
fn a_private_copy_has_the_segments_and_the_table_of_an_elf_file() {
    let file = elf_with(15, "/opt/lib");
    let with_debug_sections = [&file[..], &[7; 100]].concat();
    assert_eq!(mapped(&with_debug_sections), file);
    // The table of segments may be the last part.
    let mut bare = file[..64 + 2 * 56].to_vec();
    for segment in [64, 64 + 56] {
        bare[segment + 32..segment + 40].fill(0);
        bare[segment + 8..segment + 16].fill(0);
    }
    let with_debug_sections = [&bare[..], &[7; 100]].concat();
    assert_eq!(mapped(&with_debug_sections), bare);
    assert_eq!(mapped(b"no library"), b"no library");
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_that_exports_other_symbols_has_no_plugin() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the system lists what is mapped");
    let is_library = |path: &&str| path.starts_with('/') && path.contains(".so");
    let mapped: std::collections::BTreeSet<_> = maps.split_whitespace().filter(is_library).collect();
    for path in mapped {
        let Ok(library) = std::fs::read(path) else { continue };
        assert!(matches!(check(&library), Err(LoadFault::NoPlugin)), "{path}");
    }
}
