//! The Debian package and the container image contain what the server needs, and data and configuration outlive an upgrade
//! and a removal.
//!
//! Provoked by dpkg in a temporary root folder, and by a root folder that has only what the image has. In the full tier dpkg runs
//! inside a whole Debian, which debootstrap makes.

#![cfg(target_os = "linux")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vkog_tests::{Running, Server, Setup, amount, dead_links, workspace};

use super::dist::{released, said, unpacked};

/// The user of the image.
const IMAGE_USER: &str = "10001:10001";

/// Whether all these programs are installed and the test runs as root, as chroot and dpkg need it. Prints a line otherwise.
fn can_run(programs: &[&str]) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&folders).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let missing = programs.iter().find(|program| !folders.iter().any(|folder| folder.join(program).exists()));
    match missing {
        Some(program) => println!("skipped: {program} is not installed"),
        None if !rustix::process::geteuid().is_root() => println!("skipped: it needs root"),
        None => return true,
    }
    false
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
}

/// The root folder of a system with dpkg.
struct Root {
    folder: PathBuf,
    /// Whether it is a whole system, in which programs run by chroot.
    is_whole: bool,
}

impl Root {
    /// Makes the smallest folder in which dpkg can install.
    fn small(folder: PathBuf) -> Self {
        for made in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"] {
            fs::create_dir_all(folder.join(made)).expect("a folder can be made");
        }
        fs::write(folder.join("var/lib/dpkg/status"), "").expect("a file can be written");
        fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file can be written");
        fs::write(folder.join("etc/group"), "root:x:0:\n").expect("a file can be written");
        Self { folder, is_whole: false }
    }

    /// Makes a Debian with the packages that the package needs.
    fn whole(folder: PathBuf) -> Self {
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", "--include=systemd-standalone-sysusers,libgcc-s1", "bookworm"]);
        said(debootstrap.arg(&folder));
        Self { folder, is_whole: true }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    /// Runs dpkg with a package, or the name of one. It keeps changed configuration, as the default of its question is.
    fn dpkg(&self, action: &str, package: &Path) {
        let mut dpkg = if self.is_whole {
            let mut chroot = Command::new("chroot");
            chroot.arg(&self.folder).arg("dpkg");
            chroot
        } else {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg(format!("--root={}", self.folder.display()));
            // What the package depends on is installed outside of the folder.
            dpkg.args(["--force-script-chrootless", "--force-depends"]);
            dpkg
        };
        let path = std::env::var("PATH").unwrap_or_default();
        dpkg.args(["--log=/dev/null", "--force-confdef", "--force-confold", action]);
        let argument = if self.is_whole && package.is_absolute() {
            fs::copy(package, self.path("package.deb")).expect("a package can be copied");
            Path::new("/package.deb")
        } else {
            package
        };
        said(dpkg.arg(argument).env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C"));
    }

    /// Starts the server as the service would be started: with the program, the variables and the user of the unit.
    fn serve(&self, setup: &Setup) -> Server {
        let unit = read(&self.path("usr/lib/systemd/system/vkog.service"));
        let settings: Vec<_> = unit.lines().filter_map(|line| line.split_once('=')).collect();
        let all = |name: &'static str| settings.iter().filter(move |(key, _)| *key == name).map(|(_, value)| *value);
        let (program, user) = (all("ExecStart").next(), all("User").next().expect("the unit names a user"));
        let program = program.expect("the unit starts a program");
        let environment = all("EnvironmentFile").next().expect("the unit reads a file").trim_start_matches('-');
        let environment = read(&self.path(environment));
        let files = environment.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let variables = all("Environment").chain(files).map(|line| line.split_once('=').expect("NAME=VALUE"));

        // systemd makes the folder of the state.
        let state = self.path("var/lib/vkog");
        fs::create_dir_all(&state).expect("a folder can be made");
        let mut command = if self.is_whole {
            said(Command::new("chroot").arg(&self.folder).args(["chown", user, "/var/lib/vkog"]));
            let mut chroot = Command::new("chroot");
            chroot.arg(format!("--userspec={user}:{user}")).arg(&self.folder).arg(program);
            chroot
        } else {
            assert!(read(&self.path("etc/passwd")).contains(&format!("{user}:")), "no user {user}");
            Command::new(self.path(program))
        };
        command.args(["--listen", "127.0.0.1:0"]);
        for (name, value) in variables {
            let is_path = value.starts_with('/') && !self.is_whole;
            command.env(name, if is_path { self.path(value).into_os_string() } else { value.into() });
        }
        setup.start_by(&mut command)
    }
}

/// Makes the next version of a package, with other defaults in its configuration.
fn next_version(package: &Path, folder: &Path) -> PathBuf {
    let (tree, next) = (folder.join("next"), folder.join("next.deb"));
    said(Command::new("dpkg-deb").arg("--raw-extract").args([package, &tree]));
    let replace = |file: &str, from: &str, to: &str| {
        let text = read(&tree.join(file));
        assert!(text.contains(from), "no {from} in {file}: {text}");
        fs::write(tree.join(file), text.replace(from, to)).expect("it is ours");
    };
    let version = format!("Version: {}", env!("CARGO_PKG_VERSION"));
    replace("DEBIAN/control", &version, "Version: 99.0");
    replace("etc/vkog/environment", "#VKOG_MAX_SIZE=1GiB", "#VKOG_MAX_SIZE=2GiB");
    fs::write(tree.join("usr/share/doc/vkog/next"), "99.0").expect("it is ours");
    said(Command::new("dpkg-deb").args(["--root-owner-group", "-Zgzip", "-z1", "--build"]).args([&tree, &next]));
    next
}

#[test]
fn the_debian_package_keeps_data_and_configuration() {
    let whole = amount(0, 1) == 1 && can_run(&["debootstrap", "chroot"]);
    if !can_run(&["dpkg", "dpkg-deb", "systemd-sysusers", "deb-systemd-helper"]) {
        return;
    }
    let setup = Setup::new();
    let roots =
        [Some(Root::small(setup.folder().join("small"))), whole.then(|| Root::whole(setup.folder().join("whole")))];
    let (package, next) = (released(".deb"), next_version(&released(".deb"), setup.folder()));
    for root in roots.iter().flatten() {
        root.dpkg("--install", &package);
        assert!(read(&root.path("etc/passwd")).contains("vkog:"), "a user for the service");
        assert!(started_in(&root.folder).is_empty(), "a service was started in a folder without a service manager");
        assert_eq!(dead_links(&root.path("usr/share/doc/vkog")), [""; 0], "dead links in the documentation");
        for file in ["usr/share/bash-completion/completions/vkog", "usr/share/man/man1/vkog.1.gz"] {
            assert!(root.path(file).is_file(), "no {file}");
        }
        let environment = root.path("etc/vkog/environment");
        let configured = read(&environment) + "VKOG_MAX_VALUE=1KiB\n";
        fs::write(&environment, &configured).expect("it is ours");
        fs::write(root.path("etc/vkog/vkog.toml"), "[plugins.ttl]\n").expect("it is ours");
        let server = root.serve(&setup);
        assert_eq!(server.plugins().len(), 3, "the bundled plugins");
        server.post("k", "from the first version").expect(200);
        server.stop().expect(0);

        root.dpkg("--install", &next);
        assert!(root.path("usr/share/doc/vkog/next").exists(), "the files of the next version");
        assert_eq!(read(&environment), configured);
        let server = root.serve(&setup);
        server.get("k").expect(200).is("from the first version");
        server.put("k", [b'x'; 1025]).expect(413);
        server.stop().expect(0);

        root.dpkg("--remove", Path::new("vkog"));
        assert!(!root.path("usr/bin/vkog").exists() && !root.path("usr/lib/vkog/plugins").exists());
        assert!(environment.exists() && root.path("etc/vkog/vkog.toml").exists(), "removed configuration");
        root.dpkg("--install", &package);
        assert_eq!(read(&environment), configured);
        let server = root.serve(&setup);
        server.get("k").expect(200).is("from the first version");
        server.stop().expect(0);

        root.dpkg("--purge", Path::new("vkog"));
        assert!(!root.path("etc/vkog").exists(), "configuration after a purge");
        assert!(root.path("var/lib/vkog/store.vkog").exists(), "a purge removed data");
    }
}

#[test]
fn systemd_accepts_the_units_of_the_debian_package() {
    if !can_run(&["dpkg-deb", "systemd-analyze"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder can be made");
    let root = folder.path();
    said(Command::new("dpkg-deb").arg("--extract").args([&released(".deb"), root]));
    let units = root.join("usr/lib/systemd/system");
    let unit = read(&units.join("vkog.service"));
    // The package is not installed, but its program must be where the unit starts it.
    let program = root.join("usr/bin/vkog").display().to_string();
    assert!(unit.contains("\nExecStart=/usr/bin/vkog\n"), "{unit}");
    fs::write(units.join("vkog.service"), unit.replace("ExecStart=/usr/bin/vkog", &format!("ExecStart={program}")))
        .expect("it is ours");
    let units = ["vkog.service", "vkog.socket"].map(|name| units.join(name));
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output();
    let verified = verified.expect("systemd-analyze runs");
    // It only warns of settings that it does not know, and also checks units of this system on which these depend.
    let said = String::from_utf8_lossy(&verified.stderr);
    let about: Vec<_> = said.lines().filter(|line| line.contains("vkog")).collect();
    assert!(verified.status.success() && about.is_empty(), "{said}");
}

/// The programs below a folder that run.
fn started_in(folder: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").expect("there is /proc").flatten();
    let programs = processes.filter_map(|process| fs::read_link(process.path().join("exe")).ok());
    programs.filter(|program| program.starts_with(folder)).collect()
}

/// An instruction of the last stage of the Dockerfile, with its continued lines.
fn image() -> Vec<(String, String)> {
    let text = read(&workspace().join("Dockerfile")).replace("\\\n", " ");
    let (_, stage) = text.rsplit_once("\nFROM ").expect("a stage that is run");
    let lines = stage.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    lines.map(|(name, rest)| (name.to_owned(), rest.trim().to_owned())).collect()
}

/// Makes a root folder with the program, the plugins and the folders of the image, and the libraries that the program needs.
/// Nothing else is in it: no shell and no other program.
fn image_root(setup: &Setup) -> PathBuf {
    let (release, root) = (unpacked(setup.folder()), setup.folder().join("image"));
    fs::create_dir_all(root.join("tmp")).expect("a folder can be made");
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).expect("it is ours");
    for (_, copied) in image().iter().filter(|(name, _)| name == "COPY") {
        let words: Vec<&str> = copied.split_whitespace().filter(|word| !word.starts_with("--")).collect();
        let [from, to] = words[..] else { panic!("COPY {copied}: one source and one destination") };
        let from = release.join(from.strip_prefix("/vkog/").expect("the folder of the release"));
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it is below the root")).expect("a folder can be made");
        said(Command::new("cp").args(["-r", "--no-target-directory"]).args([&from, &to]));
    }
    said(Command::new("chown").args(["-R", "0:0"]).arg(&root));
    said(Command::new("chmod").args(["-R", "go-w"]).arg(root.join("usr")));
    for (_, line) in image().iter().filter(|(name, line)| name == "RUN" && line.starts_with("install -d ")) {
        let (options, folder) = line.rsplit_once(' ').expect("a folder");
        fs::create_dir_all(root.join(folder.trim_start_matches('/')).parent().expect("a folder")).expect("made");
        said(Command::new("sh").args(["-c", &format!("{options} \"$0\"")]).arg(root.join(&folder[1..])));
    }
    let libraries = said(Command::new("ldd").arg(root.join("usr/local/bin/vkog")));
    for library in libraries.split_whitespace().filter_map(|word| word.strip_prefix('/')) {
        let to = root.join(library);
        fs::create_dir_all(to.parent().expect("it is below the root")).expect("a folder can be made");
        fs::copy(Path::new("/").join(library), to).expect("a library can be copied");
    }
    root
}

/// A program of the image, with its variables and its user.
fn in_image(root: &Path, program: &[&str]) -> Command {
    let mut chroot = Command::new("chroot");
    chroot.arg(format!("--userspec={IMAGE_USER}")).arg(root).args(program).env_clear();
    for (_, variables) in image().iter().filter(|(name, _)| name == "ENV") {
        chroot.envs(variables.split_whitespace().filter_map(|variable| variable.split_once('=')));
    }
    chroot.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    chroot
}

#[test]
fn the_image_needs_nothing_but_the_program_and_its_libraries() {
    if !can_run(&["chroot", "ldd"]) {
        return;
    }
    let setup = Setup::new();
    let root = image_root(&setup);
    let user = image().iter().any(|(name, user)| name == "USER" && user == IMAGE_USER);
    assert!(user, "the image has another user than {IMAGE_USER}");
    let program = "/usr/local/bin/vkog";
    let mut start = in_image(&root, &[program, "--open", "--listen", "127.0.0.1:0"]);
    let server = setup.start_by(&mut start);
    assert_eq!(server.plugins().len(), 3, "the bundled plugins");
    server.post("k", "v").expect(200);
    let url = format!("http://{}", server.address());
    let get = Running::start(in_image(&root, &[program, "get", "k"]).env("VKOG_URL", &url)).wait();
    assert_eq!(get.expect(0).stdout, "v");
    // The command that the container runtime runs.
    for (_, check) in image().iter().filter(|(name, _)| name == "HEALTHCHECK") {
        let (_, words) = check.split_once("CMD ").expect("a command");
        let words: Vec<String> = serde_json::from_str(words).expect("a list of words, because there is no shell");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut health = in_image(&root, &words);
        Running::start(health.env("VKOG_URL", &url).env("VKOG_LISTEN", server.address())).wait().expect(0);
    }
    server.stop().expect(0);
    assert!(root.join("var/lib/vkog/store.vkog").exists(), "the store is in the volume");
}

#[test]
fn plugins_that_the_init_container_copies_are_loaded() {
    if !can_run(&["chroot", "ldd", "setpriv", "install"]) {
        return;
    }
    let setup = Setup::new();
    let root = image_root(&setup);
    let manifest = read(&workspace().join("dist/kubernetes/vkog.yaml"));
    let script: Vec<&str> = manifest.lines().map(str::trim).filter(|line| line.starts_with("install ")).collect();
    assert!(script.len() >= 3, "{script:?}");
    // Everybody can write the root of the volume, which has no sticky bit. The server sees only folders in it.
    let work = setup.folder().join("work");
    fs::create_dir(&work).expect("a folder can be made");
    fs::set_permissions(&work, Permissions::from_mode(0o2777)).expect("it is ours");
    fs::set_permissions(setup.folder(), Permissions::from_mode(0o755)).expect("it is ours");
    let script = script.join("\n").replace("/work", &work.display().to_string());
    let script = script.replace("/usr/local", &root.join("usr/local").display().to_string());
    let mut init = Command::new("setpriv");
    init.args(["--reuid=10001", "--regid=10001", "--clear-groups", "sh", "-euc", &script]);
    said(&mut init);
    // As a volume with a subPath is mounted.
    fs::remove_dir(root.join("tmp")).expect("it is empty");
    fs::create_dir_all(root.join("run")).expect("a folder can be made");
    for (folder, mounted) in [("plugins", "plugins"), ("tmp", "tmp"), ("run", "run/vkog")] {
        fs::rename(work.join(folder), root.join(mounted)).expect("the script made it");
    }
    let addresses = "127.0.0.1:0,unix:/run/vkog/vkog.sock";
    let mut start = in_image(&root, &["/usr/local/bin/vkog", "--open", "--listen", addresses]);
    let server = setup.start_by(start.env("VKOG_PLUGIN_DIR", "/plugins"));
    assert_eq!(server.plugins().len(), 3, "{}", server.log());
    let mut put = in_image(&root, &["/usr/local/bin/vkog", "put", "k", "v"]);
    Running::start(put.env("VKOG_URL", "unix:/run/vkog/vkog.sock")).wait().expect(0);
    server.stop().expect(0);
}
