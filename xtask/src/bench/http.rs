//! `cargo xtask bench http`: requests a second and latencies of both engines, beside nginx with a fixed answer, Webdis
//! before Redis, and Redis itself; batches beside Redis' pipelines; and what plugins cost. Parts of it by name: `reads`,
//! `writes`, `durable`, `batches`, `plugins`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::peers::{Load, Peer, redis_benchmark, wrk};
use super::store::{machine, make_store, requests};
use super::{Table, median};
use crate::Result;
use crate::build;

const ROUNDS: usize = 5;
const SECONDS: u32 = 2;
const KEYS: u64 = 10_000;
const ENGINES: [&str; 2] = ["hyper", "tiny"];
/// So many operations a batch, or commands a pipeline.
const BATCH: u32 = 64;

pub(crate) fn run(parts: &[&str]) -> Result<()> {
    let built = build::release(&["vkog", "vkog-bytes", "vkog-conflict"])?;
    let program = &built.iter().find(|built| built.package == "vkog").ok_or("cargo built no vkog")?.file;
    let folder = program.parent().ok_or("no folder")?.join("bench");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let shipped: Vec<PathBuf> =
        built.iter().filter(|built| built.package != "vkog").map(|built| built.file.clone()).collect();
    let shipped = plugin_folder(&folder.join("shipped"), &shipped)?;
    let bench = Bench { program, folder: &folder, shipped: &shipped };
    println!("{}\n", machine());
    let mut table = Table::default();
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    for clients in [64, 16].into_iter().filter(|_| wanted("reads")) {
        bench.reads(clients, &mut table)?;
    }
    for clients in [64, 16].into_iter().filter(|_| wanted("writes")) {
        bench.writes(clients, &mut table)?;
    }
    if wanted("durable") {
        bench.durable_writes(&mut table)?;
    }
    if wanted("batches") {
        bench.batches("never", &[], "≥ 1,000,000/s", &mut table)?;
        let durable = ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"];
        bench.batches("always", &durable, "≥ 500,000/s", &mut table)?;
    }
    if wanted("plugins") {
        let idle = idle_plugins(&folder, 12)?;
        bench.plugins(&plugin_folder(&folder.join("ten"), &idle[..10])?, "10", &mut table)?;
        bench.plugins(&plugin_folder(&folder.join("twelve"), &idle)?, "12", &mut table)?;
    }
    fs::remove_dir_all(&folder)?;
    table.print("peer");
    Ok(())
}

struct Bench<'a> {
    program: &'a Path,
    folder: &'a Path,
    /// With bytes and conflict.
    shipped: &'a Path,
}

/// The loads of several rounds.
#[derive(Default)]
struct Rounds(Vec<Load>);

impl Rounds {
    fn per_second(&self) -> f64 {
        median(self.0.iter().map(|load| load.per_second).collect())
    }

    fn p99(&self) -> f64 {
        median(self.0.iter().map(|load| load.p99).collect())
    }

    /// The median of the ratios of each round.
    fn over(&self, other: &Self, value: impl Fn(&Load) -> f64) -> String {
        let ratios = self.0.iter().zip(&other.0).map(|(ours, theirs)| value(ours) / value(theirs)).collect();
        format!("{:.2}", median(ratios))
    }

    fn shown(&self) -> String {
        format!("{:.0}/s, p99 {:.2} ms", self.per_second(), self.p99())
    }
}

fn rate(load: &Load) -> f64 {
    load.per_second
}

fn p99(load: &Load) -> f64 {
    load.p99
}

impl Bench<'_> {
    /// vkog with an engine, on a store of [`KEYS`] entries.
    fn vkog(&self, http: &str, plugins: Option<&Path>, fsync: &str) -> Result<Peer> {
        let store = self.folder.join(format!("{http}-{fsync}.vkog"));
        if !store.exists() {
            make_store(self.program, &store, KEYS)?;
        }
        Ok(Peer::vkog_with(self.program, &store, plugins, &["--http", http, "--fsync", fsync])?.0)
    }

    fn wrk(&self, peer: &Peer, clients: u32, method: &str, path: &str) -> Result<Load> {
        let script = requests(self.folder, method, path, KEYS)?;
        wrk(&format!("http://127.0.0.1:{}", peer.port), clients, SECONDS, &script)
    }

    fn reads(&self, clients: u32, table: &mut Table) -> Result<()> {
        let (redis, _) = Peer::redis(self.folder, &[])?;
        let nginx = Peer::nginx(self.folder, &"v".repeat(64))?;
        let webdis = Peer::webdis(self.folder, &redis)?;
        if let Some(webdis) = &webdis {
            self.wrk(webdis, 16, "PUT", "/SET/")?;
        }
        let ours = ENGINES.map(|http| self.vkog(http, Some(self.shipped), "never"));
        let [hyper, tiny] = ours;
        let ours = [hyper?, tiny?];
        let (mut fixed, mut through, mut loads) =
            (Rounds::default(), Rounds::default(), [Rounds::default(), Rounds::default()]);
        for _ in 0..ROUNDS {
            if let Some(nginx) = &nginx {
                fixed.0.push(self.wrk(nginx, clients, "GET", "/k/")?);
            }
            if let Some(webdis) = &webdis {
                through.0.push(self.wrk(webdis, clients, "GET", "/GET/")?);
            }
            for (vkog, loads) in ours.iter().zip(&mut loads) {
                loads.0.push(self.wrk(vkog, clients, "GET", "/k/")?);
            }
        }
        for ((http, loads), goals) in
            ENGINES.iter().zip(&loads).zip([["≥ 0.85", "≥ 1.6", "≤ 1.5"], ["≥ 0.55", "≥ 1.0", "≤ 2"]])
        {
            let what = |peer: &str| format!("GET, {http}, {clients} clients; {peer}");
            let p99_goal = if clients == 64 { goals[2] } else { "" };
            if nginx.is_some() {
                table.row(
                    &what("nginx, fixed answer"),
                    loads.shown(),
                    fixed.shown(),
                    loads.over(&fixed, rate),
                    goals[0],
                );
                table.row(&what("the p99 of nginx"), String::new(), String::new(), loads.over(&fixed, p99), p99_goal);
            }
            if webdis.is_some() {
                table.row(
                    &what("Webdis and Redis"),
                    loads.shown(),
                    through.shown(),
                    loads.over(&through, rate),
                    goals[1],
                );
            }
        }
        Ok(())
    }

    fn writes(&self, clients: u32, table: &mut Table) -> Result<()> {
        let (redis, _) = Peer::redis(self.folder, &[])?;
        let Some(webdis) = Peer::webdis(self.folder, &redis)? else { return Ok(()) };
        let [hyper, tiny] = ENGINES.map(|http| self.vkog(http, Some(self.shipped), "never"));
        let ours = [hyper?, tiny?];
        let (mut through, mut loads) = (Rounds::default(), [Rounds::default(), Rounds::default()]);
        for _ in 0..ROUNDS {
            through.0.push(self.wrk(&webdis, clients, "PUT", "/SET/")?);
            for (vkog, loads) in ours.iter().zip(&mut loads) {
                loads.0.push(self.wrk(vkog, clients, "PUT", "/k/")?);
            }
        }
        for ((http, loads), goal) in ENGINES.iter().zip(&loads).zip(["≥ 1.5", "≥ 1.0"]) {
            let what = format!("PUT --fsync never, {http}, {clients} clients; Webdis SET");
            table.row(&what, loads.shown(), through.shown(), loads.over(&through, rate), goal);
        }
        Ok(())
    }

    fn durable_writes(&self, table: &mut Table) -> Result<()> {
        let (redis, _) = Peer::redis(
            self.folder,
            &["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"],
        )?;
        for clients in [64, 16] {
            for (http, goal) in ENGINES.iter().zip(["≥ 1.0", "≥ 0.8"]) {
                let vkog = self.vkog(http, Some(self.shipped), "always")?;
                let (mut loads, mut theirs, mut ratios) = (Rounds::default(), vec![], vec![]);
                for _ in 0..ROUNDS {
                    let load = self.wrk(&vkog, clients, "PUT", "/k/")?;
                    let set = redis_benchmark(redis.port, clients, 1, 150_000)?;
                    ratios.push(load.per_second / set);
                    theirs.push(set);
                    loads.0.push(load);
                }
                let what = format!("PUT --fsync always, {http}, {clients} clients; Redis appendfsync always");
                let theirs = format!("{:.0}/s", median(theirs));
                table.row(&what, loads.shown(), theirs, format!("{:.2}", median(ratios)), goal);
            }
        }
        Ok(())
    }

    /// Batches of PUTs in MessagePack, of keys that are there.
    fn batches(&self, fsync: &str, redis: &[&str], goal: &str, table: &mut Table) -> Result<()> {
        const CLIENTS: u32 = 16;
        let (redis, _) = Peer::redis(self.folder, redis)?;
        let script = self.folder.join("batches.lua");
        fs::write(&script, batches())?;
        for http in ENGINES {
            let vkog = self.vkog(http, Some(self.shipped), fsync)?;
            let (mut loads, mut theirs, mut ratios) = (Rounds::default(), vec![], vec![]);
            for _ in 0..ROUNDS {
                let mut load = wrk(&format!("http://127.0.0.1:{}", vkog.port), CLIENTS, SECONDS, &script)?;
                load.per_second *= f64::from(BATCH);
                let set = redis_benchmark(redis.port, CLIENTS, BATCH, 1_000_000)?;
                ratios.push(load.per_second / set);
                theirs.push(set);
                loads.0.push(load);
            }
            let what = format!(
                "PUTs, {BATCH} a batch, --fsync {fsync}, {http}, {CLIENTS} clients; Redis SET, {BATCH} a pipeline, the same"
            );
            let goal = if http == "hyper" { goal } else { "" };
            table.row(&what, loads.shown(), format!("{:.0}/s", median(theirs)), format!("{:.2}", median(ratios)), goal);
        }
        Ok(())
    }

    /// Reads with plugins that do nothing in every hook, against those without a plugin.
    fn plugins(&self, idle: &Path, count: &str, table: &mut Table) -> Result<()> {
        for http in ENGINES {
            let (with, without) = (self.vkog(http, Some(idle), "never")?, self.folder.join("bare.vkog"));
            if !without.exists() {
                make_store(self.program, &without, KEYS)?;
            }
            let (without, _) = Peer::vkog(self.program, &without, &["--http", http])?;
            let (mut burdened, mut free) = (Rounds::default(), Rounds::default());
            for _ in 0..2 * ROUNDS {
                burdened.0.push(self.wrk(&with, 64, "GET", "/k/")?);
                free.0.push(self.wrk(&without, 64, "GET", "/k/")?);
            }
            let what = format!("GET, {http}, 64 clients, {count} plugins that do nothing in all hooks; none");
            table.row(&what, burdened.shown(), free.shown(), burdened.over(&free, rate), "≥ 0.95");
        }
        Ok(())
    }
}

/// What wrk sends: batches made before the measurement, with values of 64 bytes.
fn batches() -> String {
    format!(
        r#"
local requests, at = {{}}, 0
-- A text of less than 256 bytes in MessagePack.
local function str(text)
  return string.char(0xd9, #text) .. text
end
function init()
  math.randomseed(tonumber(tostring({{}}):match("0x(%x+)"), 16) % 100000)
  for i = 1, 500 do
    local parts = {{ string.char(0xdc, 0, {BATCH}) }}
    for j = 1, {BATCH} do
      local key = string.format("key:%012d", math.random(0, {KEYS} - 1))
      local put = str("op") .. str("put") .. str("key") .. str(key) .. str("value") .. str(string.rep("v", 64))
      parts[#parts + 1] = string.char(0x83) .. put
    end
    local body = table.concat(parts)
    requests[i] = wrk.format("POST", "/batch", {{ ["Content-Type"] = "application/msgpack" }}, body)
  end
end
function request()
  at = at % 500 + 1
  return requests[at]
end
"#
    )
}

/// A folder with these libraries, which only its owner can write.
fn plugin_folder(folder: &Path, libraries: &[PathBuf]) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    for library in libraries {
        let copy = folder.join(library.file_name().ok_or("a library has a name")?);
        fs::copy(library, &copy)?;
        only_ours(&copy)?;
    }
    only_ours(folder)?;
    Ok(folder.to_owned())
}

fn only_ours(path: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Writes and builds plugins that differ in nothing but their names.
fn idle_plugins(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let crates = folder.join("idle");
    let names: Vec<String> = (1..=count).map(|number| format!("idle-{number:02}")).collect();
    let source = idle_source();
    for name in &names {
        fs::create_dir_all(crates.join(name).join("src"))?;
        fs::write(crates.join(name).join("src/lib.rs"), &source)?;
        let api = build::root().canonicalize()?.join("plugin-api");
        fs::write(
            crates.join(name).join("Cargo.toml"),
            format!(
                "[package]\nname = {name:?}\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = [\"cdylib\"]\n\n\
                 [dependencies]\nvkog-plugin-api = {{ path = {api:?} }}\n"
            ),
        )?;
    }
    fs::write(crates.join("Cargo.toml"), format!("[workspace]\nresolver = \"3\"\nmembers = {names:?}\n"))?;
    fs::copy(build::root().join("Cargo.lock"), crates.join("Cargo.lock"))?;
    let target = folder.parent().and_then(Path::parent).ok_or("no target folder")?;
    let built = Command::new(env!("CARGO"))
        .current_dir(&crates)
        .args(["build", "--release", "--offline", "--target-dir"])
        .arg(target)
        .status()?;
    if !built.success() {
        return Err("the plugins that do nothing could not be built".into());
    }
    let library = |name: &String| {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        target.join("release").join(format!("{prefix}{}{suffix}", name.replace('-', "_")))
    };
    Ok(names.iter().map(library).collect())
}

fn idle_source() -> String {
    let mut source =
        "use vkog_plugin_api::*;\n\nstruct Idle;\n\nimpl Plugin for Idle {\n    type Settings = NoSettings;\n\n    \
                      fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {\n        Ok(Idle)\n    }\n}\n"
            .to_owned();
    for (phase, method, reference, result, body) in [
        ("Before", "before", "&mut ", " -> Verdict", "Ok(())"),
        ("Guard", "guard", "&mut ", " -> Verdict", "Ok(())"),
        ("Undo", "undo", "&", "", ""),
        ("After", "after", "&", "", ""),
    ] {
        for verb in ["Get", "Post", "Put", "Delete"] {
            let hook = format!("{method}_{}", verb.to_lowercase());
            source.push_str(&format!(
                "\nimpl {phase}{verb} for Idle {{\n    fn {hook}(&self, _: {reference}{phase}<'_, {verb}>){result} {{\n        \
                 {body}\n    }}\n}}\n"
            ));
        }
    }
    source.push_str("\nexport_plugin!(Idle);\n");
    source
}
