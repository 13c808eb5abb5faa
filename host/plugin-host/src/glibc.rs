//! The version of glibc that a library needs, and the one of this process. The dynamic linker names only the first symbol that
//! it does not find.

use std::fmt;

use object::Endianness;
use object::elf::VER_FLG_WEAK;
use object::read::elf::{ElfFile, FileHeader};
use serde::{Serialize, Serializer};

/// A version of glibc, such as 2.36.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GlibcVersion {
    major: u32,
    minor: u32,
}

impl GlibcVersion {
    /// Parses `2.36`. A third number, of versions such as 2.2.5, is ignored.
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }

    /// Returns the version of the glibc in this process, or `None` if it runs on another C library.
    pub(crate) fn of_process() -> Option<Self> {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            // SAFETY: the function takes nothing, and returns a static text that ends with a zero byte.
            let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
            Self::parse(version.to_str().ok()?)
        }
        #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
        None
    }

    /// Returns the newest version whose symbols an ELF library needs.
    pub(crate) fn needed_by<Elf: FileHeader<Endian = Endianness>>(file: &ElfFile<'_, Elf>) -> Option<Self> {
        let (endian, data, sections) = (file.endian(), file.data(), file.elf_section_table());
        let (mut libraries, strings) = sections.gnu_verneed(endian, data).ok()??;
        let strings = sections.strings(endian, data, strings).ok()?;
        let mut newest = None;
        while let Some((_, mut versions)) = libraries.next().ok()? {
            while let Some(version) = versions.next().ok()? {
                // The linker loads a library without its weak versions.
                if version.vna_flags.get(endian) & VER_FLG_WEAK != VER_FLG_WEAK {
                    let name = std::str::from_utf8(version.name(endian, strings).ok()?).ok()?;
                    newest = newest.max(name.strip_prefix("GLIBC_").and_then(Self::parse));
                }
            }
        }
        newest
    }
}

impl fmt::Display for GlibcVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

impl Serialize for GlibcVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
