//! Targets with a fragment. hyper drops the fragment of a target without a word, so that `DELETE /k/a#b` would be about `a`.
//! Therefore request lines with a `#` are searched for in the bytes that hyper reads.

use std::collections::VecDeque;

/// The longest request line that is put together from several reads, in bytes.
const LINE_MAX: usize = 8 << 10;
/// The most lines that wait for their request. Those of a body that looks like requests wait in vain.
const WAITING_MAX: usize = 64;

/// The lines of a connection.
#[derive(Default)]
pub(super) struct Lines {
    /// The line whose end has not come yet, or a body.
    begun: Vec<u8>,
}

impl Lines {
    /// Adds the request lines with a fragment in what was read next.
    pub(super) fn read(&mut self, mut bytes: &[u8], into: &mut impl FnMut(Line)) {
        if !self.begun.is_empty() {
            let end = bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1);
            let (line, rest) = bytes.split_at(end);
            if self.begun.len() + line.len() <= LINE_MAX {
                self.begun.extend_from_slice(line);
            }
            if !line.ends_with(b"\n") {
                return;
            }
            Line::of(&self.begun).into_iter().for_each(&mut *into);
            self.begun.clear();
            bytes = rest;
        }
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let (lines, begun) = bytes.split_at(whole);
        // Quick for nearly every read.
        if lines.contains(&b'#') {
            lines.split(|&byte| byte == b'\n').filter_map(Line::of).for_each(into);
        }
        if begun.len() <= LINE_MAX {
            self.begun.extend_from_slice(begun);
        }
    }

    /// Begins anew, at the next line.
    pub(super) fn clear(&mut self) {
        self.begun.clear();
    }
}

/// A line that looks like that of a request whose target has a fragment.
pub(super) struct Line {
    method: String,
    target: String,
}

impl Line {
    fn of(line: &[u8]) -> Option<Self> {
        // A body may end in the same line, right before the method.
        let mut words = line.trim_ascii_end().rsplitn(4, |&byte| byte == b' ');
        let (version, target, method) = (words.next()?, words.next()?, words.next()?);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let is_request = version.starts_with(b"HTTP/") && target.contains(&b'#');
        is_request.then(|| Self { method: text(method), target: text(target) })
    }

    /// Whether hyper makes this method and this target of it.
    fn is(&self, method: &str, target: &str) -> bool {
        self.method.ends_with(method) && self.target.split('#').next().is_some_and(|before| before.ends_with(target))
    }
}

/// The lines of a connection whose requests are still to come, in their order.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<Line>);

impl Waiting {
    pub(super) fn push(&mut self, line: Line) {
        if self.0.len() == WAITING_MAX {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// The target of a request as it was sent, if hyper dropped its fragment. What came before it is not waited for any more.
    pub(super) fn take(&mut self, method: &str, target: &str) -> Option<String> {
        let at = self.0.iter().position(|line| line.is(method, target))?;
        self.0.drain(..=at).next_back().map(|line| line.target)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(reads: &[&str]) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for read in reads {
            lines.read(read.as_bytes(), &mut |line| found.push(format!("{} {}", line.method, line.target)));
        }
        found
    }

    #[test]
    fn a_request_line_with_a_fragment_is_found_however_it_is_cut() {
        let text = "GET /a HTTP/1.1\r\nX: #\r\n\r\nDELETE /b#c HTTP/1.1\r\nHost: a\r\n\r\na valueGET /d?# HTTP/1.0\n\n";
        let expected = ["DELETE /b#c", "valueGET /d?#"];
        assert_eq!(targets(&[text]), expected);
        for first in 0..text.len() {
            for second in first..text.len() {
                assert_eq!(
                    targets(&[&text[..first], &text[first..second], &text[second..]]),
                    expected,
                    "{first} {second}"
                );
            }
        }
        assert!(targets(&["GET /a HTTP/1.1\r\nX: # b\r\nY: # HTTP\r\n# b c\r\n\r\n"]).is_empty());
    }

    #[test]
    fn a_line_is_taken_by_its_request_alone() {
        let mut waiting = Waiting::default();
        for text in ["a bodyPUT /a#1 HTTP/1.1", "GET http://b/a#2 HTTP/1.1", "GET /a#3 HTTP/1.1"] {
            waiting.push(Line::of(text.as_bytes()).expect("it is a line"));
        }
        assert_eq!(waiting.take("DELETE", "/a"), None);
        assert_eq!(waiting.take("GET", "/a").as_deref(), Some("http://b/a#2"));
        assert_eq!(waiting.take("PUT", "/a"), None, "it came before the one that was taken");
        assert_eq!(waiting.take("GET", "/a").as_deref(), Some("/a#3"));
        assert!(waiting.is_empty());
    }
}
