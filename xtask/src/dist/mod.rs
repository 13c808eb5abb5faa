//! `cargo xtask dist`: makes a release: a folder, its archive (.tar.gz, or .zip for Windows), a Debian package, a software
//! bill of materials, and the checksums of these files.

mod archive;
mod deb;
mod sbom;

use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::Result;
use crate::build::{self, BACKENDS, PLUGINS};
use archive::Packed;

/// The version of the release.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The software bill of materials in the folder of a release.
const BILL: &str = "vkog.cdx.json";

/// The folders in `dist` that operators deploy with. They have the same path in the release, so that links to them work.
const DEPLOYED: [&str; 4] = ["dist/compose", "dist/grafana", "dist/kubernetes", "dist/prometheus"];

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
    /// Leave out the plugins that connect to shared stores, which take as long to build as everything else
    #[arg(long)]
    no_backends: bool,
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

/// Makes the folder and the files, and prints their paths.
///
/// # Errors
///
/// The build fails, or a file cannot be written.
pub(crate) fn dist(Options { target, profile, no_backends }: &Options) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let native = native()?;
    let triple = target.as_deref().unwrap_or(&native);
    let folder = Path::new("target/dist").join(format!("vkog-{VERSION}-{triple}"));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    // They have not been built for other systems yet.
    let backends = if *no_backends || triple != native { &[][..] } else { &BACKENDS };
    let packages: Vec<&str> = PLUGINS.iter().chain(backends).copied().chain(["vkog"]).collect();
    for artifact in build::build(&packages, profile, target.as_deref())? {
        let below = match artifact.package.as_str() {
            "vkog" => "",
            package if BACKENDS.contains(&package) => "backends",
            _ => "plugins",
        };
        copy(&artifact.file, &folder.join(below))?;
    }
    copy_documents(&folder)?;
    if triple.contains("linux") {
        for unit in ["dist/vkog.service", "dist/vkog.socket"] {
            copy(unit.as_ref(), &folder.join("systemd"))?;
        }
    }
    generate(&folder, triple == native)?;
    document(&folder.join("api"))?;
    fs::write(folder.join(BILL), format!("{:#}\n", sbom::sbom(&packages, triple)?))?;

    println!("{}", folder.display());
    for file in pack(&folder, triple)? {
        println!("{}", file.display());
    }
    Ok(())
}

/// Copies the files of the release that are neither built nor generated.
fn copy_documents(folder: &Path) -> Result<()> {
    for document in DOCUMENTS {
        copy(document.as_ref(), folder)?;
    }
    for tree in std::iter::once("docs").chain(DEPLOYED) {
        copy_tree(tree.as_ref(), &folder.join(tree))?;
    }
    for crates in ["plugins", "examples"] {
        for member in fs::read_dir(crates)? {
            let member = member?.path();
            if member.join("README.md").is_file() {
                copy(&member.join("README.md"), &folder.join(&member))?;
            }
        }
    }
    Ok(())
}

/// Makes the files of a release from its folder, beside it. Returns their paths.
fn pack(folder: &Path, triple: &str) -> Result<Vec<PathBuf>> {
    let name = format!("vkog-{VERSION}-{triple}");
    let beside = |end: &str| folder.with_file_name(format!("{name}{end}"));
    let mut files = vec![beside(".cdx.json")];
    fs::copy(folder.join(BILL), &files[0])?;
    let is_windows = triple.contains("windows");
    let program = if is_windows { "vkog.exe" } else { "vkog" };
    let packed = Packed { folder, prefix: &name, programs: &[program] };
    if is_windows {
        files.push(beside(".zip"));
        archive::zip(&packed, File::create(&files[1])?)?;
    } else {
        files.push(beside(".tar.gz"));
        archive::tar_gz(&packed, epoch()?, File::create(&files[1])?)?;
        files.extend(deb::deb(folder, triple)?);
    }
    files.push(checksums(folder.parent().ok_or("target/dist is a folder")?)?);
    Ok(files)
}

/// Writes the checksums of all files of this version, also those of other targets, as `sha256sum --check` reads them.
fn checksums(folder: &Path) -> Result<PathBuf> {
    let starts = [format!("vkog-{VERSION}-"), format!("vkog_{}_", VERSION.replace('-', "~"))];
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && starts.iter().any(|start| name.starts_with(start)) {
            let hash = Sha256::digest(fs::read(&path)?);
            let mut line = String::new();
            for byte in hash {
                write!(line, "{byte:02x}")?;
            }
            lines.push((name.clone(), format!("{line}  {name}\n")));
        }
    }
    lines.sort();
    let file = folder.join("SHA256SUMS");
    fs::write(&file, lines.into_iter().map(|(_, line)| line).collect::<String>())?;
    Ok(file)
}

/// Returns the time of the files in archives, in seconds since 1970: `SOURCE_DATE_EPOCH` if it is set, else now.
fn epoch() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => {
            Ok(seconds.parse().map_err(|_| format!("SOURCE_DATE_EPOCH is no number of seconds: {seconds}"))?)
        }
        Err(_) => Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
    }
}

/// Writes the files that the program generates: completion scripts and the manual page. Where the program in the folder is
/// for another system, one that is built for this system generates the same.
fn generate(folder: &Path, is_native: bool) -> Result<()> {
    let generate = |arguments: &[&str], file: &str| -> Result<()> {
        let mut vkog = if is_native {
            Command::new(folder.join(format!("vkog{}", std::env::consts::EXE_SUFFIX)))
        } else {
            let mut cargo = build::cargo();
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
    let mut cargo = build::cargo();
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
