//! The preflight: checks of the tables of a library file before the dynamic linker opens it. A library that is cut off would
//! end the process with SIGBUS in glibc, and the error for another processor would be "not found".

use object::read::elf::{Dyn, ElfFile32, ElfFile64, FileHeader, ProgramHeader, SectionHeader};
use object::read::macho::{
    FatArch, LoadCommandVariant, MachHeader, MachOFatFile32, MachOFatFile64, MachOFile, MachOFile32, MachOFile64,
};
use object::read::pe::{ImageNtHeaders, PeFile, PeFile32, PeFile64};
use object::read::{NameOrOrdinal, StringTable};
use object::{Architecture, BinaryFormat, Endianness, LittleEndian, Object, ObjectKind, ObjectSegment};
use object::{elf, pe};
use vkog_plugin_api::abi::ROOT_SYMBOL;

use crate::error::LoadFault;
use crate::glibc::GlibcVersion;
use crate::load::is_loaded;

/// Checks that `data` is a complete shared library for this processor and system that exports a plugin.
pub(crate) fn check(data: &[u8]) -> Result<(), LoadFault> {
    let file = match object::FileKind::parse(data) {
        Ok(kind) => kind,
        Err(_) => return Err(LoadFault::NotALibrary { found: beginning(data) }),
    };
    match file {
        object::FileKind::Elf32 => check_elf(ElfFile32::<Endianness>::parse(data).ok(), data)?,
        object::FileKind::Elf64 => check_elf(ElfFile64::<Endianness>::parse(data).ok(), data)?,
        object::FileKind::Pe32 => check_pe(PeFile32::parse(data).ok(), data)?,
        object::FileKind::Pe64 => check_pe(PeFile64::parse(data).ok(), data)?,
        object::FileKind::MachO32 => check_mach_o(MachOFile32::<Endianness>::parse(data).ok(), data)?,
        object::FileKind::MachO64 => check_mach_o(MachOFile64::<Endianness>::parse(data).ok(), data)?,
        object::FileKind::MachOFat32 => return check_fat(MachOFatFile32::parse(data).map(|file| file.arches()), data),
        object::FileKind::MachOFat64 => return check_fat(MachOFatFile64::parse(data).map(|file| file.arches()), data),
        _ => {}
    }
    let Ok(file) = object::File::parse(data) else {
        return Err(LoadFault::CutOff { missing: "tables", len: data.len() as u64 });
    };
    let whole = |(offset, size): (u64, u64)| offset.checked_add(size).is_some_and(|end| end <= data.len() as u64);
    if !file.segments().all(|segment| whole(segment.file_range())) {
        return Err(LoadFault::CutOff { missing: "segments", len: data.len() as u64 });
    }
    check_target(&file)?;
    if file.kind() != ObjectKind::Dynamic {
        return Err(LoadFault::NotALibrary { found: format!("the header of {:?} code", file.kind()).to_lowercase() });
    }
    let symbols_cut_off = |_| LoadFault::CutOff { missing: "symbols", len: data.len() as u64 };
    for export in file.exports().map_err(symbols_cut_off)? {
        if let NameOrOrdinal::Name(name) = export.map_err(symbols_cut_off)?.name() {
            // Mach-O puts an underscore before every symbol.
            if name == ROOT_SYMBOL.as_bytes() || name.strip_prefix(b"_") == Some(ROOT_SYMBOL.as_bytes()) {
                return Ok(());
            }
        }
    }
    Err(LoadFault::NoPlugin)
}

/// Returns the newest version of glibc whose symbols a library needs, or `None` if it needs none, or is not for Linux.
pub(crate) fn needed_glibc(data: &[u8]) -> Option<GlibcVersion> {
    match object::FileKind::parse(data).ok()? {
        object::FileKind::Elf32 => GlibcVersion::needed_by(&ElfFile32::<Endianness>::parse(data).ok()?),
        object::FileKind::Elf64 => GlibcVersion::needed_by(&ElfFile64::<Endianness>::parse(data).ok()?),
        _ => None,
    }
}

/// Returns the part of an ELF library that the linker reads: everything up to the end of the last segment. The sections for
/// debuggers, which are the largest, come after that.
pub(crate) fn mapped(data: &[u8]) -> &[u8] {
    fn end<Elf: FileHeader<Endian = Endianness>>(data: &[u8]) -> Option<u64> {
        let header = Elf::parse(data).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, data).ok()?;
        let table = header.e_phoff(endian).into() + size_of_val(segments) as u64;
        let ends = segments.iter().map(|segment| segment.file_range(endian)).map(|(at, size)| at.saturating_add(size));
        ends.chain([table]).max()
    }
    let end = match object::FileKind::parse(data) {
        Ok(object::FileKind::Elf64) => end::<elf::FileHeader64<Endianness>>(data),
        Ok(object::FileKind::Elf32) => end::<elf::FileHeader32<Endianness>>(data),
        _ => None,
    };
    end.and_then(|end| data.get(..usize::try_from(end).ok()?)).unwrap_or(data)
}

fn check_target(file: &object::File<'_>) -> Result<(), LoadFault> {
    let (format, architecture) = (host_format(), host_architecture());
    if file.format() == format && file.architecture() == architecture {
        return Ok(());
    }
    Err(LoadFault::WrongArchitecture {
        theirs: target(file.format(), file.architecture()),
        ours: target(format, architecture),
    })
}

fn target(format: BinaryFormat, architecture: Architecture) -> String {
    format!("{architecture:?} ({format:?})")
}

fn host_format() -> BinaryFormat {
    if cfg!(windows) {
        BinaryFormat::Pe
    } else if cfg!(target_vendor = "apple") {
        BinaryFormat::MachO
    } else {
        BinaryFormat::Elf
    }
}

fn host_architecture() -> Architecture {
    match std::env::consts::ARCH {
        "x86_64" if cfg!(target_pointer_width = "32") => Architecture::X86_64_X32,
        "x86_64" => Architecture::X86_64,
        "x86" => Architecture::I386,
        "aarch64" => Architecture::Aarch64,
        "arm" => Architecture::Arm,
        "riscv64" => Architecture::Riscv64,
        "powerpc64" => Architecture::PowerPc64,
        "s390x" => Architecture::S390x,
        "loongarch64" => Architecture::LoongArch64,
        _ => Architecture::Unknown,
    }
}

/// Checks that all sections of an ELF file lie inside the file. The linker does not need them, but they are written last, so
/// an incomplete copy lacks them first.
fn check_elf<'data, Elf: FileHeader<Endian = Endianness>>(
    file: Option<object::read::elf::ElfFile<'data, Elf>>,
    data: &'data [u8],
) -> Result<(), LoadFault> {
    let len = data.len() as u64;
    let cut_off = |missing| LoadFault::CutOff { missing, len };
    let Some(file) = file else { return Err(cut_off("header or tables")) };
    let (header, endian) = (file.elf_header(), file.endian());
    let beyond = |offset: u64, size: u64| offset.checked_add(size).is_none_or(|end| end > len);
    for section in header.section_headers(endian, data).map_err(|_| cut_off("section headers"))? {
        if section.sh_type(endian) != elf::SHT_NOBITS
            && beyond(section.sh_offset(endian).into(), section.sh_size(endian).into())
        {
            return Err(cut_off("sections"));
        }
    }
    check_dynamic(header, endian, data)
}

/// Checks the parts of a PE file behind its sections. Windows does not need them, but an incomplete copy lacks them first. The
/// sections are segments, which [`check`] covers for every format.
fn check_pe<Pe: ImageNtHeaders>(file: Option<PeFile<'_, Pe>>, data: &[u8]) -> Result<(), LoadFault> {
    let len = data.len() as u64;
    let cut_off = |missing| LoadFault::CutOff { missing, len };
    let Some(file) = file else { return Err(cut_off("headers")) };
    let header = file.nt_headers().file_header();
    let symbols_at = u64::from(header.pointer_to_symbol_table.get(LittleEndian));
    if symbols_at != 0 {
        let symbols = u64::from(header.number_of_symbols.get(LittleEndian)) * size_of::<pe::ImageSymbol>() as u64;
        let strings_at = usize::try_from(symbols_at + symbols).map_err(|_| cut_off("symbols"))?;
        // The strings begin with their total length.
        let strings = data.get(strings_at..).and_then(|rest| rest.first_chunk()).ok_or_else(|| cut_off("symbols"))?;
        if strings_at as u64 + u64::from(u32::from_le_bytes(*strings)) > len {
            return Err(cut_off("names of symbols"));
        }
    }
    if let Some(signature) = file.data_directory(pe::IMAGE_DIRECTORY_ENTRY_SECURITY) {
        // Its address is an offset in the file, because it is never mapped.
        let (at, size) = signature.address_range();
        if u64::from(at) + u64::from(size) > len {
            return Err(cut_off("signature"));
        }
    }
    // load.rs decides where the linker searches for a name without a folder.
    match needed(&file).ok_or_else(|| cut_off("imports"))?.into_iter().find(|name| name.contains(['/', '\\', ':'])) {
        Some(value) => Err(LoadFault::SearchPath { entry: "import", value }),
        None => Ok(()),
    }
}

/// Returns the names of the libraries that a PE file needs.
fn needed<Pe: ImageNtHeaders>(file: &PeFile<'_, Pe>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    if let Some(table) = file.import_table().ok()? {
        let mut descriptors = table.descriptors().ok()?;
        while let Some(descriptor) = descriptors.next().ok()? {
            let name = table.name(descriptor.name.get(LittleEndian)).ok()?;
            names.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Some(names)
}

/// Returns the names of the libraries that a library for Windows needs.
#[cfg(windows)]
pub(crate) fn needed_on_windows(data: &[u8]) -> Vec<String> {
    PeFile64::parse(data).ok().as_ref().and_then(needed).unwrap_or_default()
}

/// Checks that all load commands of a Mach-O file are complete, and that none makes the linker search for other libraries
/// relative to the current directory or to the private copy. `@rpath` stands for folders of other load commands.
fn check_mach_o<Mach: MachHeader<Endian = Endianness>>(
    file: Option<MachOFile<'_, Mach>>,
    data: &[u8],
) -> Result<(), LoadFault> {
    let cut_off = || LoadFault::CutOff { missing: "commands to the linker", len: data.len() as u64 };
    let file = file.ok_or_else(cut_off)?;
    let mut commands = file.macho_load_commands().map_err(|_| cut_off())?;
    while let Some(command) = commands.next().map_err(|_| cut_off())? {
        let (entry, path) = match command.variant().map_err(|_| cut_off())? {
            LoadCommandVariant::Rpath(rpath) => ("RPATH", rpath.path),
            LoadCommandVariant::Dylib(dylib) => ("library", dylib.dylib.name),
            _ => continue,
        };
        let value = String::from_utf8_lossy(command.string(file.endian(), path).map_err(|_| cut_off())?).into_owned();
        let is_fixed = value.starts_with('/') || entry == "library" && value.starts_with("@rpath/");
        if !is_fixed {
            return Err(LoadFault::SearchPath { entry, value });
        }
    }
    Ok(())
}

/// Checks the part for this processor in a file with libraries for several processors.
fn check_fat<Arch: FatArch>(parts: object::read::Result<&[Arch]>, data: &[u8]) -> Result<(), LoadFault> {
    let cut_off = |_| LoadFault::CutOff { missing: "part for this processor", len: data.len() as u64 };
    let parts = parts.map_err(cut_off)?;
    match parts.iter().find(|part| part.architecture() == host_architecture()) {
        Some(part) => check(part.data(data).map_err(cut_off)?),
        None => {
            let theirs: Vec<_> = parts.iter().map(|part| format!("{:?}", part.architecture())).collect();
            Err(LoadFault::WrongArchitecture {
                theirs: format!("{} (MachO)", theirs.join(", ")),
                ours: target(host_format(), host_architecture()),
            })
        }
    }
}

/// Checks where the linker would search for the libraries that an ELF library needs. Reads the dynamic section through the
/// segments, as the linker does. Absolute paths are the decision of the author. Paths relative to the current directory or to
/// the library are refused, because the linker opens a private copy.
fn check_dynamic<Elf: FileHeader<Endian = Endianness>>(
    header: &Elf,
    endian: Endianness,
    data: &[u8],
) -> Result<(), LoadFault> {
    let cut_off = || LoadFault::CutOff { missing: "dynamic section", len: data.len() as u64 };
    let segments = header.program_headers(endian, data).map_err(|_| cut_off())?;
    for segment in segments {
        let Some(dynamic) = segment.dynamic(endian, data).map_err(|_| cut_off())? else { continue };
        let end = dynamic.iter().position(|entry| entry.tag(endian) == elf::DT_NULL).unwrap_or(dynamic.len());
        let entries = &dynamic[..end];
        // The linker uses the last of two entries.
        let value = |tag| entries.iter().rfind(|entry| entry.tag(endian) == tag).map(|entry| entry.val(endian));
        let Some((address, size)) = value(elf::DT_STRTAB).zip(value(elf::DT_STRSZ)) else { continue };
        let mut loaded = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
        let strings = loaded
            .find_map(|segment| segment.data_range(endian, data, address, size).ok().flatten())
            .ok_or_else(cut_off)?;
        let strings = StringTable::new(strings, 0, size);
        for entry in entries {
            let name = match entry.tag(endian) {
                elf::DT_RPATH => "RPATH",
                elf::DT_RUNPATH => "RUNPATH",
                elf::DT_NEEDED | elf::DT_AUXILIARY | elf::DT_FILTER => "NEEDED",
                _ => continue,
            };
            let value = entry.val32(endian).and_then(|at| strings.get(at).ok()).ok_or_else(cut_off)?;
            let value = String::from_utf8_lossy(value);
            // The linker searches for a bare name in LD_LIBRARY_PATH and then in the folders of the system. Absolute
            // folders in LD_LIBRARY_PATH are the decision of the operator.
            if name == "NEEDED" && !value.contains(['/', '$']) {
                let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
                let folders = folders.to_string_lossy();
                if !folders.is_empty() && is_astray(&folders) && !is_loaded(&value) {
                    return Err(LoadFault::LibraryPath { needed: value.into_owned(), folders: folders.into_owned() });
                }
            } else if is_astray(&value) {
                return Err(LoadFault::SearchPath { entry: name, value: value.into_owned() });
            }
        }
    }
    Ok(())
}

/// Whether a list of paths contains a relative one. An empty path means the current directory. The separators are the colon,
/// the semicolon in glibc, and the end of a line in musl.
fn is_astray(paths: &str) -> bool {
    paths.split([':', ';', '\n']).any(|path| !path.starts_with('/') || path.contains('$'))
}

fn beginning(data: &[u8]) -> String {
    if data.is_empty() {
        return "nothing: it is empty".to_owned();
    }
    format!("\"{}\"", data[..data.len().min(16)].escape_ascii())
}

#[cfg(test)]
mod tests;
