//! The items of the outermost array or object, one by one, without a parse of what is in them.

use super::scan::{Defect, Dialect, Scan};

/// The members of the object `text`, in order: each key as it is written, without its quotes, and the value's text.
///
/// Ends after the first error.
pub fn members(text: &[u8], dialect: Dialect) -> Members<'_> {
    Members {
        scan: Scan::new(text, dialect),
        state: State::Start,
    }
}

/// The elements of the array `text`, in order.
///
/// Ends after the first error.
pub fn elements(text: &[u8], dialect: Dialect) -> Elements<'_> {
    Elements {
        scan: Scan::new(text, dialect),
        state: State::Start,
    }
}

/// A key as it is written, without its quotes, and its value's text.
type Member<'a> = (&'a [u8], &'a [u8]);

/// See [`members`].
#[derive(Clone, Debug)]
pub struct Members<'a> {
    scan: Scan<'a>,
    state: State,
}

/// See [`elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    scan: Scan<'a>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Start,
    Inside,
    Done,
}

impl<'a> Members<'a> {
    fn member(&mut self) -> Result<Option<Member<'a>>, Defect> {
        if !self.scan.next_item(&mut self.state, b'{', b'}')? {
            return Ok(None);
        }
        let start = self.scan.at + 1;
        self.scan.key()?;
        let key = self.scan.slice(start, self.scan.key_end);
        Ok(Some((key, self.scan.spanned_value()?)))
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = Result<Member<'a>, Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let member = self.member();
        if !matches!(member, Ok(Some(_))) {
            self.state = State::Done;
        }
        member.transpose()
    }
}

impl<'a> Elements<'a> {
    fn element(&mut self) -> Result<Option<&'a [u8]>, Defect> {
        if !self.scan.next_item(&mut self.state, b'[', b']')? {
            return Ok(None);
        }
        self.scan.spanned_value().map(Some)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Done {
            return None;
        }
        let element = self.element();
        if !matches!(element, Ok(Some(_))) {
            self.state = State::Done;
        }
        element.transpose()
    }
}

impl Scan<'_> {
    /// Steps to the next item of the outermost array or object; at its end, checks that nothing follows.
    fn next_item(&mut self, state: &mut State, open: u8, close: u8) -> Result<bool, Defect> {
        self.space();
        if *state == State::Start {
            self.expect(open)?;
            *state = State::Inside;
            self.space();
            if self.peek() != Some(close) {
                return Ok(true);
            }
        } else if self.peek() == Some(b',') {
            self.at += 1;
            self.space();
            return Ok(true);
        }
        self.expect(close)?;
        self.end()?;
        Ok(false)
    }
}
