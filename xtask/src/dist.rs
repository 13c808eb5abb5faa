//! `cargo xtask dist`: makes a release, as a folder and as an archive: .tar.gz, or .zip for Windows.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::{Compression, write::GzEncoder};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::Result;
use crate::build::{self, PLUGINS};

/// The shells, and the name of the file that completes `vkog` in each.
const SHELLS: [(&str, &str); 5] = [
    ("bash", "vkog.bash"),
    ("elvish", "vkog.elv"),
    ("fish", "vkog.fish"),
    ("powershell", "_vkog.ps1"),
    ("zsh", "_vkog"),
];

/// The files that are copied as they are.
const DOCUMENTS: [&str; 7] =
    ["README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "ARCHITECTURE.md"];

/// The target and the profile of a release.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build for this system, such as x86_64-pc-windows-gnu
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Build with this profile
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
}

/// The crates of the interface for plugins, whose documentation is part of a release.
const DOCUMENTED: [&str; 2] = ["vkog-plugin-api", "vkog-plugin-testing"];

/// The front page of that documentation: it leads to the first crate.
const FRONT_PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>VKOG plugin API</title>
<meta http-equiv="refresh" content="0; url=vkog_plugin_api/index.html">
<p>Documentation of <a href="vkog_plugin_api/index.html">vkog-plugin-api</a> and
<a href="vkog_plugin_testing/index.html">vkog-plugin-testing</a></p>
</html>
"#;

/// Makes the folder and the archive, and prints their paths.
///
/// # Errors
///
/// The build fails, or a file cannot be written.
pub(crate) fn dist(Options { target, profile }: &Options) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let native = native()?;
    let target = target.as_deref();
    let triple = target.unwrap_or(&native);
    let name = format!("vkog-{}-{triple}", env!("CARGO_PKG_VERSION"));
    let folder = Path::new("target/dist").join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let packages: Vec<&str> = PLUGINS.into_iter().chain(["vkog"]).collect();
    for artifact in build::build(&packages, profile, target)? {
        let below = if artifact.package == "vkog" { "" } else { "plugins" };
        copy(&artifact.file, &folder.join(below))?;
    }
    for document in DOCUMENTS {
        copy(document.as_ref(), &folder)?;
    }
    copy_tree("docs".as_ref(), &folder.join("docs"))?;
    for crates in ["plugins", "examples"] {
        for member in fs::read_dir(crates)? {
            let member = member?.path();
            if member.join("README.md").is_file() {
                copy(&member.join("README.md"), &folder.join(&member))?;
            }
        }
    }
    if triple.contains("linux") {
        for unit in ["dist/vkog.service", "dist/vkog.socket"] {
            copy(unit.as_ref(), &folder.join("systemd"))?;
        }
    }
    generate(&folder, triple == native)?;
    document(&folder.join("api"))?;

    let packed = if triple.contains("windows") { zip(&folder, &name)? } else { tar(&folder, &name)? };
    println!("{}\n{}", folder.display(), packed.display());
    Ok(())
}

/// Writes the files that the program generates: completion scripts and the manual page. Where the program in the folder is
/// for another system, one that is built for this system generates the same.
fn generate(folder: &Path, is_native: bool) -> Result<()> {
    let generate = |arguments: &[&str], file: &str| -> Result<()> {
        let mut vkog = if is_native {
            Command::new(folder.join(format!("vkog{}", std::env::consts::EXE_SUFFIX)))
        } else {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["run", "--quiet", "--package", "vkog", "--"]);
            cargo
        };
        let output = vkog.args(arguments).output()?;
        if !output.status.success() {
            return Err(format!("vkog {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(fs::write(folder.join(file), output.stdout)?)
    };
    for subfolder in ["completions", "man"] {
        fs::create_dir_all(folder.join(subfolder))?;
    }
    for (shell, file) in SHELLS {
        generate(&["completions", shell], &format!("completions/{file}"))?;
    }
    generate(&["man"], "man/vkog.1")
}

/// Writes the documentation of the plugin interface, as `cargo doc` makes it. In a separate target folder, because the usual one
/// may contain the documentation of other crates, to which the pages would then link.
fn document(folder: &Path) -> Result<()> {
    let target = Path::new("target/dist/rustdoc");
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["doc", "--no-deps", "--quiet", "--target-dir"]).arg(target);
    if std::env::var_os("CARGO_BUILD_BUILD_DIR").is_none() {
        // Reuse the dependencies that were compiled for other targets.
        cargo.env("CARGO_BUILD_BUILD_DIR", std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()));
    }
    let status = cargo.args(DOCUMENTED.iter().flat_map(|name| ["--package", name])).status()?;
    if !status.success() {
        return Err(format!("cargo doc {}: {status}", DOCUMENTED.join(" ")).into());
    }
    copy_tree(&target.join("doc"), folder)?;
    // cargo's own, without a use outside of its target folder.
    let lock = folder.join(".lock");
    if lock.exists() {
        fs::remove_file(lock)?;
    }
    Ok(fs::write(folder.join("index.html"), FRONT_PAGE)?)
}

/// Returns the target triple of this machine.
fn native() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output()?;
    let version = String::from_utf8(output.stdout)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or("rustc -vV prints no line host:")?.to_owned())
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let name = file.file_name().ok_or_else(|| format!("{} is no file", file.display()))?;
    fs::copy(file, folder.join(name)).map_err(|error| format!("cannot copy {}: {error}", file.display()))?;
    Ok(())
}

/// Copies the files of a folder and of the folders in it.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.is_dir() {
            copy_tree(&path, &to.join(path.file_name().unwrap_or_default()))?;
        } else {
            copy(&path, to)?;
        }
    }
    Ok(())
}

/// Returns everything below a folder, sorted by name: its path, whether it is a folder, and its mode. The modes do not depend
/// on the umask: only the owner may write, because the server refuses plugins that other users can modify.
fn entries(folder: &Path) -> Result<Vec<(PathBuf, bool, u32)>> {
    let mut found = Vec::new();
    let mut names = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    names.sort();
    for path in names {
        if path.is_dir() {
            found.push((path.clone(), true, 0o755));
            found.extend(entries(&path)?);
        } else {
            let is_program = path.file_name().is_some_and(|name| name == "vkog" || name == "vkog.exe");
            found.push((path, false, if is_program { 0o755 } else { 0o644 }));
        }
    }
    Ok(found)
}

fn tar(folder: &Path, name: &str) -> Result<PathBuf> {
    let packed = folder.with_file_name(format!("{name}.tar.gz"));
    let mut archive = tar::Builder::new(GzEncoder::new(File::create(&packed)?, Compression::default()));
    let root = (folder.to_owned(), true, 0o755);
    for (path, is_folder, mode) in std::iter::once(root).chain(entries(folder)?) {
        let data = if is_folder { Vec::new() } else { fs::read(&path)? };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(if is_folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(mode);
        header.set_size(data.len() as u64);
        header.set_mtime(fs::metadata(&path)?.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_secs());
        archive.append_data(&mut header, Path::new(name).join(path.strip_prefix(folder)?), data.as_slice())?;
    }
    archive.into_inner()?.finish()?;
    Ok(packed)
}

fn zip(folder: &Path, name: &str) -> Result<PathBuf> {
    let packed = folder.with_file_name(format!("{name}.zip"));
    let mut archive = ZipWriter::new(File::create(&packed)?);
    for (path, is_folder, mode) in entries(folder)? {
        // The format requires a slash between folders on every system.
        let within = path.strip_prefix(folder)?.to_string_lossy().replace('\\', "/");
        let options = SimpleFileOptions::default().unix_permissions(mode);
        if is_folder {
            archive.add_directory(format!("{name}/{within}"), options)?;
        } else {
            archive.start_file(format!("{name}/{within}"), options)?;
            archive.write_all(&fs::read(&path)?)?;
        }
    }
    archive.finish()?;
    Ok(packed)
}
