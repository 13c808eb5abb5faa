//! A real Chromium without a window, controlled by its DevTools protocol over pipes.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::DEADLINE;
use crate::process::Running;

/// The timeout of a call. A page makes dozens of requests in one call, beside other browsers.
const PATIENCE: Duration = DEADLINE.saturating_mul(4);

/// A browser with its own profile. It is killed when it is dropped.
pub struct Browser {
    process: Running,
    input: File,
    messages: Receiver<Value>,
    calls: u64,
    /// The tabs that have loaded their pages.
    loaded: HashSet<String>,
    _folder: TempDir,
}

/// A tab of a browser.
pub struct Tab(String);

impl Browser {
    /// Starts a browser that resolves names by these rules, as `MAP evil.example 127.0.0.1`; `None` if Chromium is not
    /// installed.
    pub fn start(host_rules: &str) -> Option<Self> {
        Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
        let folder =
            tempfile::Builder::new().prefix("vkog-browser-").tempdir().expect("a temporary folder can be made");
        let pipes = ["in", "out"].map(|name| folder.path().join(name));
        let made = Command::new("mkfifo").args(&pipes).status().expect("mkfifo runs");
        assert!(made.success(), "cannot make pipes in {}", folder.path().display());
        // The browser reads commands from descriptor 3 and writes messages to descriptor 4. Open for both, a pipe waits
        // for no one.
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).expect("it was just made");
        let (input, output) = (open(&pipes[0]), open(&pipes[1]));
        let flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --ignore-certificate-errors --disable-sync --disable-dev-shm-usage --remote-debugging-pipe";
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec chromium {flags} \"$@\" 3<\"$0/in\" 4>\"$0/out\"")]);
        shell.arg(folder.path()).arg(format!("--user-data-dir={}", folder.path().join("profile").display()));
        shell.arg(format!("--host-resolver-rules={host_rules}"));
        let process = Running::start(&mut shell);
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(Ok(message)) = message.map(|message| serde_json::from_slice(&message)) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        Some(Self { process, input, messages, calls: 0, loaded: HashSet::new(), _folder: folder })
    }

    #[track_caller]
    fn call(&mut self, tab: Option<&Tab>, method: &str, parameters: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(Tab(session)) = tab {
            message["sessionId"] = session.as_str().into();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("a pipe takes what is written");
        loop {
            let answer = self.message(method);
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Reads the next message of the browser.
    #[track_caller]
    fn message(&mut self, awaited: &str) -> Value {
        let message = self.messages.recv_timeout(PATIENCE).unwrap_or_else(|error| {
            panic!("{awaited}: no answer: {error}\n--- browser log\n{}", self.process.stderr.text())
        });
        if message["method"] == "Page.loadEventFired" {
            self.loaded.extend(message["sessionId"].as_str().map(str::to_owned));
        }
        message
    }

    /// Opens an empty tab.
    #[track_caller]
    pub fn tab(&mut self) -> Tab {
        let target = self.call(None, "Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call(None, "Target.attachToTarget", attach);
        let tab = Tab(attached["sessionId"].as_str().expect("a session has an id").to_owned());
        self.call(Some(&tab), "Page.enable", json!({}));
        tab
    }

    /// Navigates to a page, and waits until it is loaded.
    #[track_caller]
    pub fn go(&mut self, tab: &Tab, url: &str) {
        self.loaded.remove(&tab.0);
        let gone = self.call(Some(tab), "Page.navigate", json!({ "url": url }));
        assert!(gone.get("errorText").is_none(), "cannot go to {url}: {gone}");
        while !self.loaded.contains(&tab.0) {
            self.message(url);
        }
    }

    /// Runs the body of an asynchronous function in the page, as if the page's own script did, and gives what it
    /// returns.
    #[track_caller]
    pub fn run(&mut self, tab: &Tab, body: &str) -> Value {
        let expression = format!("(async () => {{ {body} }})()");
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let done = self.call(Some(tab), "Runtime.evaluate", parameters);
        assert!(done.get("exceptionDetails").is_none(), "{body}: {done}");
        done["result"]["value"].clone()
    }
}
