//! The Debian package of a release: an `ar` archive of a version number, the scripts and fields in `dist/debian`, and the
//! installed files. It needs no tool of Debian.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use object::Endianness;
use object::read::elf::{ElfFile32, ElfFile64, FileHeader};

use super::archive::{Packed, tar_gz};
use super::{VERSION, copy, copy_tree, epoch};
use crate::Result;

/// The files of the release that are installed, and where.
const INSTALLED: [(&str, &str); 4] = [
    ("vkog", "usr/bin/vkog"),
    ("completions/vkog.bash", "usr/share/bash-completion/completions/vkog"),
    ("completions/vkog.fish", "usr/share/fish/vendor_completions.d/vkog.fish"),
    ("completions/_vkog", "usr/share/zsh/vendor-completions/_vkog"),
];

/// The files and folders of the release that are not documentation. The documentation of the plugin interface, which is
/// large, is left to the archive.
const NO_DOCUMENTATION: [&str; 5] = ["vkog", "api", "completions", "man", "systemd"];

/// Texts in the unit of the archive, and their replacements in the unit of the package.
const UNIT: [(&str, &str); 3] = [
    ("/usr/local/bin/", "/usr/bin/"),
    ("/usr/local/lib/vkog/", "/usr/lib/vkog/"),
    ("DynamicUser=yes", "User=vkog\nGroup=vkog"),
];

/// The scripts that dpkg runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Makes the package from the folder of a release. Returns `None` if Debian does not have its architecture.
pub(super) fn deb(folder: &Path, triple: &str) -> Result<Option<PathBuf>> {
    let Some(architecture) = architecture(triple) else { return Ok(None) };
    // In Debian's order of versions, 1.0.0~rc.1 comes before 1.0.0.
    let version = VERSION.replace('-', "~");
    let stage = folder.with_file_name("deb");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let (data, control) = (stage.join("data"), stage.join("control"));
    install(folder, &data)?;
    describe(&data, &control, &version, architecture)?;

    let packed = folder.with_file_name(format!("vkog_{version}_{architecture}.deb"));
    let data = Packed { folder: &data, prefix: "", programs: &["usr/bin/vkog"] };
    let control = Packed { folder: &control, prefix: "", programs: &SCRIPTS };
    let time = epoch()?;
    let mut archive = ar::Builder::new(File::create(&packed)?);
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", tar_gz(&control, time, Vec::new())?),
        ("data.tar.gz", tar_gz(&data, time, Vec::new())?),
    ];
    for (name, content) in members {
        let mut header = ar::Header::new(name.into(), content.len() as u64);
        header.set_mode(0o100_644);
        header.set_mtime(time);
        archive.append(&header, content.as_slice())?;
    }
    archive.into_inner()?.flush()?;
    fs::remove_dir_all(stage)?;
    Ok(Some(packed))
}

/// Returns Debian's name for the processor of a target, if Debian has a port with glibc for it.
fn architecture(triple: &str) -> Option<&'static str> {
    Some(match triple {
        "x86_64-unknown-linux-gnu" => "amd64",
        "aarch64-unknown-linux-gnu" => "arm64",
        "armv7-unknown-linux-gnueabihf" => "armhf",
        "i686-unknown-linux-gnu" => "i386",
        "riscv64gc-unknown-linux-gnu" => "riscv64",
        "powerpc64le-unknown-linux-gnu" => "ppc64el",
        "s390x-unknown-linux-gnu" => "s390x",
        _ => return None,
    })
}

/// Puts the files where the package installs them.
fn install(folder: &Path, data: &Path) -> Result<()> {
    for (from, to) in INSTALLED {
        copy_as(&folder.join(from), &data.join(to))?;
    }
    for library in libraries(folder)? {
        copy(&library, &data.join("usr/lib/vkog/plugins"))?;
    }
    copy_as("dist/debian/environment".as_ref(), &data.join("etc/vkog/environment"))?;
    copy_as("dist/debian/vkog.sysusers".as_ref(), &data.join("usr/lib/sysusers.d/vkog.conf"))?;
    let units = data.join("usr/lib/systemd/system");
    copy("dist/vkog.socket".as_ref(), &units)?;
    let mut unit = fs::read_to_string("dist/vkog.service")?;
    for (from, to) in UNIT {
        if !unit.contains(from) {
            return Err(format!("dist/vkog.service has no {from}; correct UNIT in xtask/src/dist/deb.rs").into());
        }
        unit = unit.replace(from, to);
    }
    fs::write(units.join("vkog.service"), unit)?;

    let documents = data.join("usr/share/doc/vkog");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if NO_DOCUMENTATION.iter().any(|other| name == *other) {
            continue;
        }
        if path.is_dir() { copy_tree(&path, &documents.join(name))? } else { copy(&path, &documents)? }
    }
    for library in libraries(&documents)? {
        fs::remove_file(library)?;
    }
    copy_as("LICENSE".as_ref(), &documents.join("copyright"))?;
    compress(&folder.join("man/vkog.1"), &data.join("usr/share/man/man1/vkog.1.gz"))
}

/// Writes the fields and scripts of the package.
fn describe(data: &Path, control: &Path, version: &str, architecture: &str) -> Result<()> {
    for script in SCRIPTS {
        copy(&Path::new("dist/debian").join(script), control)?;
    }
    copy("dist/debian/conffiles".as_ref(), control)?;
    let programs = std::iter::once(data.join("usr/bin/vkog")).chain(libraries(&data.join("usr/lib/vkog"))?);
    let glibc = programs.map(|file| newest_glibc(&fs::read(file)?)).collect::<Result<Vec<_>>>()?;
    let (major, minor) = glibc.into_iter().flatten().max().ok_or("the program needs no version of glibc")?;
    let fields = fs::read_to_string("dist/debian/control.in")?;
    let fields = fields.replace("@VERSION@", version).replace("@ARCHITECTURE@", architecture);
    let fields = fields.replace("@GLIBC@", &format!("{major}.{minor}"));
    let fields = fields.replace("@SIZE@", &size(data)?.div_ceil(1024).to_string());
    Ok(fs::write(control.join("control"), fields)?)
}

/// Returns the newest version of glibc whose symbols an ELF file needs.
fn newest_glibc(data: &[u8]) -> Result<Option<(u32, u32)>> {
    match object::FileKind::parse(data)? {
        object::FileKind::Elf32 => newest_version(ElfFile32::<Endianness>::parse(data)?),
        object::FileKind::Elf64 => newest_version(ElfFile64::<Endianness>::parse(data)?),
        _ => Ok(None),
    }
}

fn newest_version<'data, Elf: FileHeader<Endian = Endianness>>(
    file: object::read::elf::ElfFile<'data, Elf>,
) -> Result<Option<(u32, u32)>> {
    let (endian, data, sections) = (file.endian(), file.data(), file.elf_section_table());
    let Some((mut libraries, strings)) = sections.gnu_verneed(endian, data)? else { return Ok(None) };
    let strings = sections.strings(endian, data, strings)?;
    let mut newest = None;
    while let Some((_, mut versions)) = libraries.next()? {
        while let Some(version) = versions.next()? {
            let name = str::from_utf8(version.name(endian, strings)?)?;
            let numbers = name.strip_prefix("GLIBC_").and_then(|version| version.split_once('.'));
            if let Some((major, minor)) = numbers {
                // The third number, of versions such as 2.2.5, is irrelevant today.
                let minor = minor.split('.').next().unwrap_or_default();
                newest = newest.max(Some((major.parse()?, minor.parse()?)));
            }
        }
    }
    Ok(newest)
}

/// Returns the plugins of a folder of a release.
fn libraries(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder.join("plugins"))?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "so")).collect())
}

fn copy_as(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().ok_or("a file has a folder")?)?;
    fs::copy(from, to).map_err(|error| format!("cannot copy {}: {error}", from.display()))?;
    Ok(())
}

fn compress(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().ok_or("a file has a folder")?)?;
    let mut file = GzEncoder::new(File::create(to)?, Compression::best());
    file.write_all(&fs::read(from)?)?;
    file.finish()?;
    Ok(())
}

/// Returns the bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { size(&path)? } else { fs::metadata(&path)?.len() };
    }
    Ok(bytes)
}
