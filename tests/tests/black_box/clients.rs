//! Each common HTTP client has the features that its row of docs/reference/clients.md says, on both engines.
//!
//! Provoked with a script for each client in tests/clients, which prints one line for each feature. A client that is not
//! installed is skipped with a line. With `VKOG_BLESS=1`, the rows of the installed clients are written instead of compared.

#![cfg(unix)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vkog_tests::{Certificate, DEADLINE, ENGINES, Running, Setup, amount, build, built, workspace};

/// How long a script may take: it sends and receives 200 MB, beside others.
const CLIENT_DEADLINE: Duration = DEADLINE.saturating_mul(8);

const PAGE: &str = "docs/reference/clients.md";

const FEATURES: [&str; 11] = [
    "GET",
    "PUT",
    "chunked upload",
    "100-continue",
    "range",
    "If-None-Match",
    "If-Match",
    "413",
    "watch",
    "TLS",
    "Unix socket",
];

/// A client, in the order of the page.
struct Client {
    name: &'static str,
    /// The script in tests/clients, and what runs it.
    script: &'static str,
    runner: &'static [&'static str],
    /// A command that succeeds if the client is installed, and the Debian or PyPI packages that install it.
    probe: &'static [&'static str],
    packages: &'static str,
}

const CLIENTS: [Client; 13] = [
    Client { name: "curl", script: "curl.sh", runner: &["bash"], probe: &["curl", "--version"], packages: "curl" },
    Client { name: "wget", script: "wget.sh", runner: &["bash"], probe: &["wget", "--version"], packages: "wget" },
    Client {
        name: "Python requests",
        script: "python_requests.py",
        runner: &["python3"],
        probe: &["python3", "-c", "import requests"],
        packages: "python3-requests",
    },
    Client {
        name: "Python httpx",
        script: "python_httpx.py",
        runner: &["python3"],
        probe: &["python3", "-c", "import httpx"],
        packages: "python3-httpx",
    },
    Client {
        name: "Python aiohttp",
        script: "python_aiohttp.py",
        runner: &["python3"],
        probe: &["python3", "-c", "import aiohttp"],
        packages: "python3-aiohttp",
    },
    Client {
        name: "Node fetch",
        script: "node_fetch.mjs",
        runner: &["node"],
        probe: &["node", "-e", "process.exit(globalThis.fetch ? 0 : 1)"],
        packages: "nodejs",
    },
    Client {
        name: "Go net/http",
        script: "go_net_http.go",
        runner: &["go", "run"],
        probe: &["go", "version"],
        packages: "golang-go",
    },
    Client {
        name: "Java HttpClient",
        script: "JavaHttpClient.java",
        runner: &["java"],
        probe: &["javac", "-version"],
        packages: "default-jdk-headless",
    },
    Client {
        name: "Ruby Net::HTTP",
        script: "ruby_net_http.rb",
        runner: &["ruby"],
        probe: &["ruby", "-e", ""],
        packages: "ruby",
    },
    Client {
        name: "PHP curl",
        script: "php_curl.php",
        runner: &["php"],
        probe: &["php", "-r", "exit(function_exists('curl_init') ? 0 : 1);"],
        packages: "php-cli php-curl",
    },
    Client {
        name: "Perl LWP",
        script: "perl_lwp.pl",
        runner: &["perl"],
        probe: &["perl", "-MLWP::UserAgent", "-MLWP::Protocol::https", "-e", ""],
        packages: "libwww-perl liblwp-protocol-https-perl",
    },
    Client {
        name: "Perl HTTP::Tiny",
        script: "perl_http_tiny.pl",
        runner: &["perl"],
        probe: &["perl", "-MHTTP::Tiny", "-MIO::Socket::SSL", "-e", ""],
        packages: "libio-socket-ssl-perl",
    },
    // A package, which `program` builds.
    Client { name: "reqwest", script: "reqwest", runner: &[], probe: &[], packages: "" },
];

/// Returns the command that runs a client's script; none if the client is not installed.
fn program(client: &Client) -> Option<Command> {
    let script = workspace().join("tests/clients").join(client.script);
    let Some((runner, arguments)) = client.runner.split_first() else {
        if amount(0, 1) == 0 {
            eprintln!("skipped: {} is built for `cargo xtask test --full` only", client.name);
            return None;
        }
        let built = build(&mut built(&script)).unwrap_or_else(|error| panic!("{error}"));
        return Some(Command::new(built.program("vkog-client-reqwest")));
    };
    let (probe, words) = client.probe.split_first().expect("a client that is not ours has a probe");
    let probed = Command::new(probe).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !probed.is_ok_and(|status| status.success()) {
        eprintln!("skipped: {} is not installed ({})", client.name, client.packages);
        return None;
    }
    let mut command = Command::new(runner);
    command.args(arguments).arg(script);
    Some(command)
}

/// Runs a client's script against servers of an engine, and returns the lines of the page that it stands for. TLS is always
/// hyper's, because tiny_http has none.
fn lines(client: &Client, command: &mut Command, engine: &str) -> Vec<String> {
    let limits = ["--fsync", "never", "--max-value", "20MiB"];
    let certificate = Certificate::signed();
    let secure = Setup::new().certificate(&certificate);
    let encrypted = secure.start();
    let ca = secure.folder().join("ca.pem");
    fs::write(&ca, &certificate.authority).expect("the folder is ours");
    let setup = Setup::on(engine).args(limits);
    let plain = setup.start();
    let socket = setup.folder().join("socket");
    let listen = format!("unix:{}", socket.display());
    let local = Running::start(setup.vkog().args(["--no-plugins", "--file", "local.vkog", "--listen", &listen]));
    assert!(local.stdout.wait_for(|text| text.contains(&listen)), "{engine} does not listen: {}", local.stderr.text());

    command.arg(format!("http://{}", plain.address())).arg(format!("https://{}", encrypted.address()));
    command.arg(ca).arg(socket).current_dir(setup.folder());
    let exit = Running::start(command).wait_at_most(CLIENT_DEADLINE);
    let mut outcomes: Vec<Vec<&str>> = exit.stdout.lines().map(|line| line.split('\t').collect()).collect();
    let name = client.name;
    let failed = outcomes.iter().any(|outcome| !["yes", "no"].contains(&outcome[1]));
    assert!(!failed && exit.status.success(), "{name} on {engine}: {exit}\n--- server\n{}", plain.log());
    let position = |feature: &str| FEATURES.iter().position(|known| *known == feature);
    outcomes.sort_by_key(|outcome| position(outcome[0]));
    assert!(outcomes.iter().map(|outcome| outcome[0]).eq(FEATURES), "{name} on {engine}: {exit}");
    let cells: String = outcomes.iter().map(|outcome| format!(" {} |", outcome[1])).collect();
    let reasons = outcomes.iter().filter(|outcome| outcome[1] == "no");
    let reasons = reasons.map(|outcome| format!("| {name} | {} | {} |", outcome[0], outcome[2]));
    std::iter::once(format!("| {name} |{cells}")).chain(reasons).collect()
}

fn page() -> PathBuf {
    workspace().join(PAGE)
}

/// Returns the lines of a page that are about a client.
fn kept(page: &str, client: &Client) -> Vec<String> {
    let start = format!("| {} |", client.name);
    page.lines().filter(|line| line.starts_with(&start)).map(str::to_owned).collect()
}

/// Returns the page with these lines for each client: its row, and its reasons.
fn render(lines: &[Vec<String>]) -> String {
    let mut page = format!(
        "# HTTP clients\n\nThis page is generated by tests that run each client against both engines. The scripts in\n\
        `tests/clients` are examples of each feature.\n\n| client |{}\n|---|{}\n",
        FEATURES.map(|feature| format!(" {feature} |")).concat(),
        "---|".repeat(FEATURES.len()),
    );
    let rows = |lines: &mut dyn Iterator<Item = &String>| lines.map(|line| format!("{line}\n")).collect::<String>();
    page += &rows(&mut lines.iter().flat_map(|lines| lines.first()));
    page += "\n\
        | feature | test |\n|---|---|\n\
        | chunked upload | a value of 20 MB whose length the client does not know before |\n\
        | 100-continue | the client waits for the server's answer to `Expect` before it sends the body |\n\
        | range | a part of a value by `Range` |\n\
        | If-None-Match | a GET gets 304 |\n\
        | If-Match | a PUT with the current `ETag` succeeds, one with another gets 412 |\n\
        | 413 | the client receives the response to a body larger than `--max-value` |\n\
        | watch | the client receives an event, disconnects, and resumes with `Last-Event-ID` |\n\
        | TLS | the client trusts a private certificate authority (hyper only) |\n\
        | Unix socket | a PUT over a Unix socket |\n";
    page += "\n## Reasons\n\n| client | feature | reason |\n|---|---|---|\n";
    page + &rows(&mut lines.iter().flat_map(|lines| lines.iter().skip(1)))
}

fn check(name: &str) {
    let client = CLIENTS.iter().find(|client| client.name == name).expect("it is one of the clients");
    let Some(_) = program(client) else { return };
    let [tiny, hyper] = ENGINES.map(|engine| lines(client, &mut program(client).expect("it is installed"), engine));
    assert_eq!(tiny, hyper, "{name} has other features on tiny than on hyper");
    // Tests of other clients may write their rows meanwhile.
    static PAGE_FILE: Mutex<()> = Mutex::new(());
    let _held = PAGE_FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if std::env::var_os("VKOG_BLESS").is_some() {
        let page = fs::read_to_string(self::page()).unwrap_or_default();
        let all = CLIENTS.iter().map(|each| if each.name == name { hyper.clone() } else { kept(&page, each) });
        fs::write(self::page(), render(&Vec::from_iter(all))).expect("the page can be written");
    }
    let page = fs::read_to_string(self::page()).expect("the page can be read");
    assert_eq!(kept(&page, client), hyper, "{PAGE} differs; write it with VKOG_BLESS=1");
}

#[test]
fn the_page_of_clients_has_each_client_and_each_feature() {
    let page = fs::read_to_string(self::page()).expect("the page can be read");
    let lines = CLIENTS.each_ref().map(|client| kept(&page, client));
    for (client, lines) in CLIENTS.iter().zip(&lines) {
        assert!(!lines.is_empty(), "no row for {} in {PAGE}; write it with VKOG_BLESS=1", client.name);
    }
    assert_eq!(page, render(&lines), "{PAGE} differs; write it with VKOG_BLESS=1");
}

#[test]
fn curl_has_the_features_of_its_row() {
    check("curl");
}

#[test]
fn wget_has_the_features_of_its_row() {
    check("wget");
}

#[test]
fn python_requests_has_the_features_of_its_row() {
    check("Python requests");
}

#[test]
fn python_httpx_has_the_features_of_its_row() {
    check("Python httpx");
}

#[test]
fn python_aiohttp_has_the_features_of_its_row() {
    check("Python aiohttp");
}

#[test]
fn node_fetch_has_the_features_of_its_row() {
    check("Node fetch");
}

#[test]
fn go_net_http_has_the_features_of_its_row() {
    check("Go net/http");
}

#[test]
fn java_httpclient_has_the_features_of_its_row() {
    check("Java HttpClient");
}

#[test]
fn ruby_net_http_has_the_features_of_its_row() {
    check("Ruby Net::HTTP");
}

#[test]
fn php_curl_has_the_features_of_its_row() {
    check("PHP curl");
}

#[test]
fn perl_lwp_has_the_features_of_its_row() {
    check("Perl LWP");
}

#[test]
fn perl_http_tiny_has_the_features_of_its_row() {
    check("Perl HTTP::Tiny");
}

#[test]
fn reqwest_has_the_features_of_its_row() {
    check("reqwest");
}
