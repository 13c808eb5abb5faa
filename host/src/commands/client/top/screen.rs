//! The terminal of `vkog top`: another screen in raw mode, which is left when this is dropped.

use std::io::{self, Write};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{
    Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use crossterm::{execute, queue};

use super::frame::cut;

/// A terminal that shows frames.
pub(super) struct Screen(io::Stdout);

/// The request of the operator, by a key or by the terminal.
#[derive(PartialEq, Eq)]
pub(super) enum Wish {
    Quit,
    /// The terminal has another size, or has to be drawn again.
    Redraw,
}

impl Screen {
    /// Enters the other screen.
    ///
    /// # Errors
    ///
    /// Standard output is not a terminal.
    pub(super) fn enter() -> io::Result<Self> {
        enable_raw_mode()?;
        // From now on it is left when it is dropped.
        let mut screen = Self(io::stdout());
        execute!(screen.0, EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// Draws a frame, cut to the size of the terminal.
    pub(super) fn draw(&mut self, lines: Vec<String>) -> io::Result<()> {
        let (columns, rows) = size()?;
        let lines = cut(lines, columns.into(), rows.into());
        let left = lines.len() as u16;
        for (row, line) in lines.into_iter().enumerate() {
            // A terminal whose last column is written may clear it with the rest of the line.
            queue!(self.0, MoveTo(0, row as u16), Clear(ClearType::CurrentLine), Print(line))?;
        }
        if left < rows {
            queue!(self.0, MoveTo(0, left), Clear(ClearType::FromCursorDown))?;
        }
        self.0.flush()
    }

    /// Waits for a wish of the operator, up to this time.
    pub(super) fn wish(&self, timeout: Duration) -> io::Result<Option<Wish>> {
        if !event::poll(timeout)? {
            return Ok(None);
        }
        Ok(match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Release => None,
            Event::Key(key) => match key.code {
                KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Wish::Quit),
                KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::Quit),
                _ => None,
            },
            Event::Resize(..) => Some(Wish::Redraw),
            _ => None,
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = execute!(self.0, EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}
