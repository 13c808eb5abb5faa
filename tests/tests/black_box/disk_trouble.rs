//! A disk that fails or is full costs no acknowledged write and brings no refused one back, and the server heals without a
//! signal once it can.
//!
//! System calls of the running server are made to fail by strace; small disks are tmpfs mounts. Tests that find no strace, or
//! no right to mount, print that they are skipped. These faults are injected while a DELETE and a PUT are sent, with the
//! server killed and started again afterwards (host/store/tests/simulated_disk/double_faults.rs has the same on a simulated disk
//! with power cuts):
//!
//! | system call | error | and then | error | answer |
//! |---|---|---|---|---|
//! | `fdatasync` | EIO, once | | | 503, refused for certain |
//! | `fdatasync` | EIO, once | `ftruncate` | EIO, always | 503, refused for certain: overwritten |
//! | `fdatasync` | EIO, always | | | 503, outcome unknown |
//! | `fdatasync` | EIO, always | `ftruncate` | EIO, always | 503, outcome unknown |
//! | `fdatasync` | EIO, once | `ftruncate`, `pwrite64` | EIO, always | 503, outcome unknown |
//! | `fdatasync` | EROFS, always | `ftruncate`, `pwrite64` | EROFS, always | 503, outcome unknown (ext4 turns read-only) |
//! | `fdatasync` | ENOSPC, once | | | 503, refused for certain |
//! | `pwrite64` | EIO, once | | | 503, refused for certain |
//! | `pwrite64` | EIO, once | `ftruncate` | EIO, always | 503, refused for certain |
//! | `pwrite64` | ENOSPC, once | | | 507, refused for certain, and the next one succeeds |
//! | `pwrite64` | ENOSPC, once | `ftruncate` | EIO, always | 507, refused for certain, and the next one succeeds |
//! | `pwrite64` | ENOSPC, once | `ftruncate`, `fdatasync` | EIO, always | 503, outcome unknown |
//! | `pwrite64` | EDQUOT, once | | | 507, refused for certain, and the next one succeeds |
//! | `rename` | EBUSY, always | | | 200; `/readyz` 503 until a snapshot succeeds |
//! | `fsync` of a folder | EINVAL | | | starts with a warning |
//! | `flock` | EOPNOTSUPP, ENOLCK | | | starts; a second server is refused |
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use vkog_tests::{DEADLINE, Reply, Running, Server, Setup};

/// Whether a program is installed.
fn is_there(program: &str) -> bool {
    let status = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = status.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: there is no {program}");
    }
    found
}

/// System calls of a running process that fail, until it is dropped.
struct Injection(Option<Running>);

impl Injection {
    /// Makes calls fail; `None` if strace may not.
    fn into(server: &Server, faults: &[&str]) -> Option<Self> {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync,ftruncate,pwrite64,rename"]);
        for fault in faults {
            strace.args(["-e", &format!("inject={fault}")]);
        }
        let strace = Running::start(strace.args(["-p", &server.id().to_string()]));
        let attached = strace.stderr.wait_for(|text| text.contains("attached"));
        if !attached {
            println!("skipped: strace may not attach: {}", strace.stderr.text());
        }
        attached.then_some(Self(Some(strace)))
    }

    fn end(mut self) {
        let strace = self.0.take().expect("it runs");
        strace.signal("INT");
        strace.wait();
    }
}

/// The expected response.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Told {
    Refused(u16),
    Unknown,
}

impl Told {
    fn of(reply: &Reply) -> Self {
        match reply.text() {
            text if text.starts_with("Outcome unknown") => Self::Unknown,
            text => {
                assert!(text.starts_with("Rolled back"), "{reply}");
                Self::Refused(reply.status)
            }
        }
    }
}

const FAULTS: [(&[&str], Told); 13] = [
    (&["fdatasync:error=EIO:when=1"], Told::Refused(503)),
    (&["fdatasync:error=EIO:when=1", "ftruncate:error=EIO"], Told::Refused(503)),
    (&["fdatasync:error=EIO"], Told::Unknown),
    (&["fdatasync:error=EIO", "ftruncate:error=EIO"], Told::Unknown),
    (&["fdatasync:error=EIO:when=1", "ftruncate:error=EIO", "pwrite64:error=EIO:when=2+"], Told::Unknown),
    (&["fdatasync:error=EROFS", "ftruncate:error=EROFS", "pwrite64:error=EROFS:when=2+"], Told::Unknown),
    (&["fdatasync:error=ENOSPC:when=1"], Told::Refused(503)),
    (&["pwrite64:error=EIO:when=1"], Told::Refused(503)),
    (&["pwrite64:error=EIO:when=1", "ftruncate:error=EIO"], Told::Refused(503)),
    (&["pwrite64:error=ENOSPC:when=1"], Told::Refused(507)),
    (&["pwrite64:error=ENOSPC:when=1", "ftruncate:error=EIO"], Told::Refused(507)),
    (&["pwrite64:error=ENOSPC:when=1", "ftruncate:error=EIO", "fdatasync:error=EIO"], Told::Unknown),
    (&["pwrite64:error=EDQUOT:when=1"], Told::Refused(507)),
];

#[test]
fn an_injected_fault_loses_no_acknowledged_write_and_brings_no_refused_one_back() {
    if !is_there("strace") {
        return;
    }
    for (faults, expected) in FAULTS {
        for method in ["DELETE", "PUT"] {
            let what = format!("{method} with {faults:?}");
            let setup = Setup::new();
            let server = setup.start();
            server.put("key", "kept").expect(200);
            let Some(injection) = Injection::into(&server, faults) else { return };
            let request = server.key(method, "key");
            let reply = if method == "PUT" { request.body("refused").send() } else { request.send() };
            assert_eq!(Told::of(&reply), expected, "{what}: {reply}");
            server.get("key").expect(200).is("kept");
            let later = server.put("later", "later");
            match expected {
                Told::Refused(507) => later.expect(200),
                _ => later.expect(503).begins("Rolled back"),
            };
            if expected == Told::Unknown {
                server.logs(&["could not be made invalid"]);
            }
            injection.end();
            server.stop_with("KILL");
            let server = setup.start();
            let reply = server.get("key");
            if expected != Told::Unknown {
                reply.expect(200).is("kept");
            } else if method == "PUT" {
                reply.expect(200);
            }
            server.get("later").expect(if expected == Told::Refused(507) { 200 } else { 404 });
        }
    }
}

#[test]
fn a_failing_snapshot_is_visible_and_succeeds_later_without_a_signal() {
    if !is_there("strace") {
        return;
    }
    let setup = Setup::new();
    let server = setup.start();
    server.put("key", "kept").expect(200);
    let Some(injection) = Injection::into(&server, &["rename:error=EBUSY"]) else { return };
    server.signal("USR1");
    server.logs(&["no snapshot", "busy"]);
    server.path("GET", "/readyz").send().expect(503).says("a snapshot failed").says("busy");
    server.path("GET", "/metrics").send().expect(200).says("\nvkog_snapshot_failing 1\n");
    server.put("key", "also durable").expect(200);
    injection.end();
    server.logs(&["wrote", "again"]);
    server.path("GET", "/readyz").send().expect(200);
    server
        .path("GET", "/metrics")
        .send()
        .expect(200)
        .says("\nvkog_snapshot_failing 0\n")
        .says("\nvkog_snapshots_total 1\n");
    server.stop().expect(0);
}

/// A small disk, until it is dropped.
pub(super) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` if this user may not mount one.
    pub(super) fn new(size: &str) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("vkog-disk-").tempdir().expect("a temporary folder can be made");
        let options = format!("size={size},mode=0700");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path()).output();
        let mounted = status.is_ok_and(|output| output.status.success());
        if !mounted {
            println!("skipped: this user may not mount");
        }
        mounted.then_some(Self(folder))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Starts a server whose store is on it.
    fn setup(&self) -> Setup {
        Setup::new().store(self.path().join("s.vkog"))
    }

    /// Fills the disk.
    pub(super) fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let mut file = std::fs::File::create(&filler).expect("a file can be made");
        let zeros = [0; 4096];
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        filler
    }

    /// Mounts it again with this option: `ro` or `rw`.
    #[track_caller]
    pub(super) fn remount(&self, option: &str) {
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &format!("remount,{option}")]).arg(self.path()).status();
        assert!(status.expect("mount runs").success(), "cannot remount {} as {option}", self.path().display());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path());
    }
}

fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).status();
}

/// Returns the value of a metric.
fn metric(server: &Server, name: &str) -> u64 {
    let text = server.path("GET", "/metrics").send().expect(200).text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Repeats a write until a snapshot has made space for it.
fn put_in_time(server: &Server, key: &str, value: &[u8]) {
    let deadline = Instant::now() + DEADLINE;
    while server.put(key, value).status != 200 {
        assert!(Instant::now() < deadline, "it does not heal\n{}", server.log());
    }
}

#[test]
fn a_small_disk_holds_one_key_that_is_overwritten_endlessly() {
    for fsync in ["always", "100ms", "never"] {
        let Some(disk) = SmallDisk::new("20m") else { return };
        let setup = disk.setup().args(["--fsync", fsync]);
        let server = setup.start();
        for number in 0..3000 {
            put_in_time(&server, "key", format!("{number:010000}").as_bytes());
        }
        server.path("GET", "/readyz").send().expect(200);
        server.stop().expect(0);
        let server = setup.start();
        server.get("key").expect(200).is(format!("{:010000}", 2999));
        server.stop().expect(0);
    }
}

#[test]
fn a_disk_filled_to_507_recovers_by_deletes() {
    for deleted in [1, 2] {
        let Some(disk) = SmallDisk::new("8m") else { return };
        let setup = disk.setup();
        let server = setup.start();
        let value = vec![b'x'; 50_000];
        let filled = (0..).find(|number| server.put(&format!("key-{number}"), &value).status != 200).expect("it ends");
        assert!(filled > 50, "{filled} values of 50 kB on 8 MiB\n{}", server.log());
        server.put("one-more", &value).refused(507, "Rolled back").says("the next snapshot");
        server.path("GET", "/readyz").send().expect(503).says("too full");
        assert_eq!(metric(&server, "vkog_writable"), 0);
        for number in (0..filled).step_by(deleted) {
            server.delete(&format!("key-{number}")).expect(200);
        }
        server.put("large", vec![b'y'; 700_000]).expect(200);
        server.logs(&["has free disk space again"]);
        server.path("GET", "/readyz").send().expect(200);
        assert_eq!(metric(&server, "vkog_writable"), 1);
        server.stop().expect(0);
        let server = setup.start();
        server.get("large").expect(200).is(vec![b'y'; 700_000]);
        server.get("key-0").expect(404);
        assert_eq!(server.get("key-1").status == 200, deleted == 2);
    }
}

#[test]
fn a_disk_filled_by_others_allows_deletes_and_restarts_and_recovers() {
    let Some(disk) = SmallDisk::new("20m") else { return };
    let setup = disk.setup();
    let server = setup.start();
    let value = vec![b'x'; 100_000];
    for number in 0..20 {
        server.put(&format!("key-{number}"), &value).expect(200);
    }
    let filler = disk.fill();
    server.put("key-1", vec![b'y'; 300_000]).refused(507, "Rolled back");
    server.path("GET", "/readyz").send().expect(503);
    server.delete("key-0").expect(200);
    server.put("key-1", vec![b'y'; 300_000]).refused(507, "Rolled back");
    server.stop().expect(0);

    let server = setup.start();
    server.get("key-0").expect(404);
    server.get("key-1").expect(200).is(&value);
    server.delete("key-2").expect(200);
    server.put("key-1", vec![b'y'; 300_000]).refused(507, "Rolled back");
    std::fs::remove_file(filler).expect("it exists");
    server.logs(&["has free disk space again"]);
    server.put("key-1", vec![b'y'; 300_000]).expect(200);
    server.signal("USR1");
    server.stop().expect(0);
    let server = setup.start();
    server.get("key-2").expect(404);
    server.get("key-1").expect(200).is(vec![b'y'; 300_000]);
}

#[test]
fn a_full_disk_is_freed_at_once_by_a_snapshot_of_little_data() {
    let Some(disk) = SmallDisk::new("20m") else { return };
    let setup = disk.setup();
    let server = setup.start();
    for number in 0..500 {
        server.put("key", format!("{number:010000}")).expect(200);
    }
    let before = metric(&server, "vkog_log_bytes");
    assert!(before > 4_000_000, "{before} bytes");
    disk.fill();
    // Each needs more than the log has zeros for; the snapshot that the first one of them wants makes room for the others.
    let value = vec![b'y'; 300_000];
    put_in_time(&server, "key", &value);
    assert!(metric(&server, "vkog_log_bytes") < before, "the log is a new one");
    server.stop().expect(0);
}

#[test]
fn log_min_sets_the_log_size_that_triggers_a_snapshot() {
    let setup = Setup::new().args(["--log-min", "100KiB"]);
    let server = setup.start();
    for _ in 0..50 {
        server.put("key", [b'x'; 10_000]).expect(200);
    }
    let deadline = Instant::now() + DEADLINE;
    while metric(&server, "vkog_snapshots_total") == 0 {
        assert!(Instant::now() < deadline, "no snapshot at 100 KiB\n{}", server.log());
    }
    server.stop().expect(0);
    let server = Setup::new().start();
    for _ in 0..50 {
        server.put("key", [b'x'; 10_000]).expect(200);
    }
    assert_eq!(metric(&server, "vkog_snapshots_total"), 0, "64 MiB by default");
}

#[test]
fn a_store_that_is_a_mount_point_is_refused_with_a_way_out() {
    let setup = Setup::new();
    let source = setup.folder().join("source.vkog");
    setup.start_with(["--listen", "127.0.0.1:0", "--no-plugins", "-f", "source.vkog"]).stop().expect(0);
    if !source.exists() {
        std::fs::write(&source, "").expect("a file can be made");
    }
    std::fs::write(setup.store_file(), "").expect("a file can be made");
    let mut mount = Command::new("mount");
    let mounted = mount.arg("--bind").arg(&source).arg(setup.store_file()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        println!("skipped: this user may not mount");
        return;
    }
    let exit = setup.fail();
    unmount(&setup.store_file());
    let exit = exit.expect(1);
    let error = exit.one_error();
    assert!(error.contains("is a mount point") && error.contains("mount its folder"), "{error}");
}

/// Starts a server whose calls of one kind all fail; strace ends with it.
fn start_with_faults(setup: &Setup, call: &str, fault: &str) -> Server {
    let line = format!(
        "exec strace -f -o /dev/null -e trace={call} -e inject={call}:{fault} \
         vkog --listen 127.0.0.1:0 --no-plugins --file store.vkog"
    );
    setup.start_by(&mut setup.shell(&line))
}

/// Stops the program under strace, which ignores signals itself.
fn stop_below_strace(setup: &Setup, server: Server) {
    let lock = setup.store_file().with_extension("vkog.lock");
    let pid = std::fs::read_to_string(lock).expect("the server has its store locked");
    let status = Command::new("kill").args(["-s", "TERM", pid.trim()]).status();
    assert!(status.expect("kill runs").success());
    server.stop_with("CONT").expect(0);
}

#[test]
fn a_folder_that_cannot_be_synced_causes_one_warning() {
    if !is_there("strace") {
        return;
    }
    let setup = Setup::new();
    let server = start_with_faults(&setup, "fsync", "error=EINVAL");
    server.logs(&["cannot sync the folder", "Invalid argument"]);
    server.put("key", "kept").expect(200);
    let warnings = server.log().matches("cannot sync the folder").count();
    assert_eq!(warnings, 1, "{}", server.log());
    stop_below_strace(&setup, server);
    setup.start().get("key").expect(200).is("kept");
}

#[test]
fn a_filesystem_without_flock_gets_another_lock() {
    if !is_there("strace") {
        return;
    }
    for error in ["EOPNOTSUPP", "ENOLCK"] {
        let setup = Setup::new();
        let server = start_with_faults(&setup, "flock", &format!("error={error}"));
        server.put("key", "kept").expect(200);
        let line = format!(
            "strace -f -o /dev/null -e trace=flock -e inject=flock:error={error} \
             vkog --listen 127.0.0.1:0 --no-plugins --file store.vkog"
        );
        let exit = Running::start(&mut setup.shell(&line)).wait().expect(4);
        assert!(exit.one_error().contains("in use"), "{exit}");
        stop_below_strace(&setup, server);
    }
}

#[test]
fn a_file_size_limit_refuses_writes_and_does_not_end_the_server() {
    let setup = Setup::new();
    // In blocks of 512 bytes.
    let line = "ulimit -f 2000 && exec vkog --no-plugins --listen 127.0.0.1:0 --file store.vkog";
    let server = setup.start_by(&mut setup.shell(line));
    let value = vec![b'x'; 100_000];
    let stored: Vec<String> = (0..20)
        .map(|number| format!("key-{number}"))
        .filter(|key| {
            let status = server.put(key, &value).status;
            assert!(status == 200 || status == 507, "{status}");
            status == 200
        })
        .collect();
    assert!((1..20).contains(&stored.len()), "{} of 20 were stored", stored.len());
    server.get(&stored[0]).expect(200).is(&value);
    server.stop().expect(0);
    let server = setup.start();
    server.path("GET", "/keys?count").send().expect(200).says(&format!("\"count\": {}", stored.len()));
    for key in &stored {
        server.get(key).expect(200).is(&value);
    }
}
