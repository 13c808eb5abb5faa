//! `vkog top`: a live view of a server from `/metrics` and `/plugins`.

mod frame;
mod metrics;
mod sample;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use ureq::http::Method;

use self::frame::{State, frame};
use self::sample::{Plugins, Sample};
use self::screen::{Screen, Wish};
use super::{ClientError, Remote, RequestError, Server, duration, say};
use crate::failure::Failure;
use crate::signals::{Signal, signals};

/// How long a key or a signal may wait until it is noticed.
const ATTENTION: Duration = Duration::from_millis(50);

/// Shows a server.
#[derive(clap::Args)]
pub struct Top {
    /// Refresh at this interval
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    interval: Duration,

    /// Print one frame, of one interval, as text; needs no terminal
    #[arg(long, visible_alias = "batch")]
    once: bool,

    #[command(flatten)]
    remote: Remote,
}

/// A sample, or why there is none.
type Reading = Result<Sample, ClientError>;

/// Shows the server until the operator quits.
///
/// # Errors
///
/// Standard output is not a terminal, or with `--once`, the server does not respond.
pub fn top(Top { remote, interval, once }: Top) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    if once {
        return print_once(&server, interval);
    }
    if !std::io::stdout().is_terminal() {
        return Err(ClientError::NoTerminal.into());
    }
    let signals = signals()?;
    let url = server.url.to_string();
    let (send, readings) = bounded(0);
    thread::Builder::new().name("sample".to_owned()).spawn(move || sample(&server, interval, &send))?;
    let result = show(&url, &readings, &signals);
    // The terminal is restored before an error is printed.
    result.map_err(|source| ClientError::Terminal { source })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a frame of one interval.
fn print_once(server: &Server, interval: Duration) -> Result<ExitCode, Failure> {
    let before = read(server)?;
    thread::sleep(interval);
    let now = read(server)?;
    for line in frame(&server.url.to_string(), &State::Reached { now: &now, before: Some(&before) }) {
        say(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a sample in every interval, until its receiver is dropped.
fn sample(server: &Server, interval: Duration, send: &Sender<Reading>) {
    loop {
        let began = Instant::now();
        if send.send(read(server)).is_err() {
            return;
        }
        thread::sleep(interval.saturating_sub(began.elapsed()));
    }
}

fn read(server: &Server) -> Reading {
    let text = |path: &str| -> Result<String, ClientError> {
        let mut response =
            server.ask(server.request(Method::GET, path)).map_err(|error: RequestError| error.of("read statistics"))?;
        response.body_mut().read_to_string().map_err(|error| server.lost(error).of("read statistics"))
    };
    let plugins: Plugins = serde_json::from_str(&text("/plugins")?).map_err(ClientError::NotStatistics)?;
    Ok(Sample::new(&text("/metrics")?, plugins))
}

/// Draws each reading until the operator quits, or a signal ends the process.
fn show(url: &str, readings: &Receiver<Reading>, signals: &Receiver<Signal>) -> std::io::Result<()> {
    let mut screen = Screen::enter()?;
    let (mut now, mut before): (Option<Reading>, Option<Sample>) = (None, None);
    let mut redraws = true;
    loop {
        if redraws {
            screen.draw(view(url, now.as_ref(), before.as_ref()))?;
        }
        redraws = match screen.wish(ATTENTION)? {
            Some(Wish::Quit) => return Ok(()),
            Some(Wish::Redraw) => true,
            None => false,
        };
        if signals.try_iter().any(|signal| signal == Signal::Stop) {
            return Ok(());
        }
        match readings.try_recv() {
            Ok(reading) => {
                before = now.take().and_then(Result::ok);
                now = Some(reading);
                redraws = true;
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

fn view(url: &str, now: Option<&Reading>, before: Option<&Sample>) -> Vec<String> {
    let mut lines = match now {
        None => frame(url, &State::Waiting),
        Some(Ok(now)) => frame(url, &State::Reached { now, before }),
        Some(Err(error)) => frame(url, &State::Unreachable(&error.to_string())),
    };
    lines.extend([String::new(), "q quits".to_owned()]);
    lines
}
