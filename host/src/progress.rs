//! A progress bar on standard error for work that takes over a second, if standard error is a terminal.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use indicatif::{ProgressBar, ProgressStyle};

/// Shorter work has no bar.
const DELAY: Duration = Duration::from_secs(1);
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// A progress bar. Dropping it clears its line.
pub struct Bar {
    state: Arc<State>,
    /// Dropped to end the thread that draws.
    stop: Option<Sender<()>>,
    /// Disconnected when that thread has ended.
    ended: Option<Receiver<Infallible>>,
}

#[derive(Default)]
struct State {
    done: AtomicU64,
    total: AtomicU64,
}

impl Bar {
    /// Starts a bar with a label such as "loading local.vkog".
    pub fn new(what: impl Into<String>) -> Self {
        let mut bar = Self { state: Arc::default(), stop: None, ended: None };
        if std::io::stderr().is_terminal() {
            let (stop, stopped) = bounded(0);
            let (state, what) = (Arc::clone(&bar.state), what.into());
            let (ending, ended) = bounded::<Infallible>(0);
            let drawn = thread::Builder::new().name("progress".to_owned()).spawn(move || {
                let _ending = ending;
                draw(&state, what, &stopped);
            });
            if drawn.is_ok() {
                (bar.stop, bar.ended) = (Some(stop), Some(ended));
            }
        }
        bar
    }

    /// Sets the progress and the total, of any unit; a total of 0 is unknown. Cheap, from any thread.
    pub fn set(&self, done: u64, total: u64) {
        self.state.done.store(done, Ordering::Relaxed);
        self.state.total.store(total, Ordering::Relaxed);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.stop.take();
        // A terminal may be stopped. Then the bar stays.
        if let Some(ended) = self.ended.take() {
            let _ = ended.recv_timeout(DELAY);
        }
    }
}

fn draw(state: &State, what: String, stopped: &Receiver<()>) {
    if stopped.recv_timeout(DELAY) != Err(RecvTimeoutError::Timeout) {
        return;
    }
    let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let known = style("{msg} [{bar:30}] {percent}%, {eta} left").progress_chars("=> ");
    let unknown = style("{msg} {spinner} {elapsed}");
    let bar = ProgressBar::no_length().with_message(what).with_elapsed(DELAY);
    let mut shown = None;
    loop {
        let (done, total) = (state.done.load(Ordering::Relaxed), state.total.load(Ordering::Relaxed));
        if shown != Some(total > 0) {
            shown = Some(total > 0);
            bar.set_style(if total > 0 { known.clone() } else { unknown.clone() });
        }
        if total > 0 {
            bar.set_length(total);
            bar.set_position(done.min(total));
        }
        bar.tick();
        if stopped.recv_timeout(REDRAW_EVERY) != Err(RecvTimeoutError::Timeout) {
            return bar.finish_and_clear();
        }
    }
}
