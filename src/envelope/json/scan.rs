//! One pass over a JSON text: is it well-formed, of the expected kind, and harmless to a Python worker?
//!
//! Iterative, without allocation. It costs about as much as all that is written around an ordinary row's arguments, so
//! where Postgres vouches for the syntax, it runs only over a text that might go beyond a limit.

use super::string::find_special;

/// Arrays and objects inside of each other, at most.
///
/// Python's decoder recurses and gives up near its recursion limit (1,000 by default, less what the worker's own stack
/// has used), and what a task does with its arguments (repr, copy, encode again) recurses too. 200 is far from both ends.
pub const MAX_DEPTH: usize = 200;

/// Digits of an integer, at most: Python refuses to convert longer ones (`sys.set_int_max_str_digits`), so the worker
/// would discard the message.
pub const MAX_INTEGER_DIGITS: usize = 4300;

/// What is allowed beside RFC 8259.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// Nothing: what Postgres accepts as `json`.
    Strict,
    /// `NaN`, `Infinity` and `-Infinity`, which Python's encoder writes.
    Python,
}

/// The kind of a JSON value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `{...}`
    Object,
    /// `[...]`
    Array,
    /// `"..."`
    String,
    /// A number.
    Number,
    /// `true` or `false`
    Boolean,
    /// `null`
    Null,
}

impl Kind {
    /// With its article, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::Array => "an array",
            Kind::String => "a string",
            Kind::Number => "a number",
            Kind::Boolean => "a boolean",
            Kind::Null => "null",
        }
    }
}

/// Why a JSON text is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Defect {
    /// Not JSON.
    #[error("is not JSON (at byte {at})")]
    Syntax {
        /// Offset of the offending byte.
        at: usize,
    },
    /// More than [`MAX_DEPTH`] levels.
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// An integer of more than [`MAX_INTEGER_DIGITS`] digits.
    #[error("holds an integer of more than {MAX_INTEGER_DIGITS} digits")]
    LongInteger,
    /// JSON of another kind.
    #[error("must be {}, not {}", expected.name(), found.name())]
    OtherKind {
        /// What it must be.
        expected: Kind,
        /// What it is.
        found: Kind,
    },
}

/// The kind of the value that `text` begins with; `None` if no value begins so.
pub fn kind(text: &[u8]) -> Option<Kind> {
    match text.iter().find(|b| !is_space(**b))? {
        b'{' => Some(Kind::Object),
        b'[' => Some(Kind::Array),
        b'"' => Some(Kind::String),
        b'-' | b'0'..=b'9' | b'N' | b'I' => Some(Kind::Number),
        b't' | b'f' => Some(Kind::Boolean),
        b'n' => Some(Kind::Null),
        _ => None,
    }
}

/// Checks that `text` is one JSON value of the kind `expected`, within the limits.
///
/// # Errors
/// The first [`Defect`].
pub fn check(text: &[u8], expected: Kind, dialect: Dialect) -> Result<(), Defect> {
    let mut scan = Scan::new(text, dialect);
    scan.value()?;
    scan.end()?;
    is_kind(text, expected)
}

fn is_kind(text: &[u8], expected: Kind) -> Result<(), Defect> {
    match kind(text) {
        Some(found) if found == expected => Ok(()),
        Some(found) => Err(Defect::OtherKind { expected, found }),
        None => Err(Defect::Syntax { at: 0 }),
    }
}

/// As [`check`] in the strict dialect, for a text that is known to be well-formed, from a column of type json or jsonb.
///
/// # Errors
/// Another kind, or beyond a limit.
pub fn check_vouched(text: &[u8], expected: Kind) -> Result<(), Defect> {
    if may_be_too_deep(text) || may_hold_long_integer(text) {
        return check(text, expected, Dialect::Strict);
    }
    is_kind(text, expected)
}

/// Each level takes two brackets, of which this counts the opening ones, also those in strings.
fn may_be_too_deep(text: &[u8]) -> bool {
    let opens = |byte: &&u8| matches!(byte, b'[' | b'{');
    text.len() > 2 * MAX_DEPTH && text.iter().filter(opens).count() > MAX_DEPTH
}

/// Whether somewhere, be it in a string, more digits stand in a row than an integer may have. So many cannot lie between
/// the places that are looked at.
fn may_hold_long_integer(text: &[u8]) -> bool {
    const STRIDE: usize = MAX_INTEGER_DIGITS + 1;
    let is_digit = |byte: &&u8| byte.is_ascii_digit();
    (STRIDE - 1..text.len()).step_by(STRIDE).any(|at| {
        let (before, behind) = text.split_at(at);
        let digits = behind.iter().take_while(is_digit).count();
        digits > 0 && digits + before.iter().rev().take_while(is_digit).count() >= STRIDE
    })
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

/// Which of the open levels are objects: one bit each.
#[derive(Default)]
struct Levels {
    bits: [u64; 4],
    depth: usize,
}

impl Levels {
    fn push(&mut self, object: bool) -> Result<(), Defect> {
        if self.depth >= MAX_DEPTH {
            return Err(Defect::TooDeep);
        }
        if let Some(word) = self.bits.get_mut(self.depth / 64) {
            let bit = 1 << (self.depth % 64);
            *word = if object { *word | bit } else { *word & !bit };
        }
        self.depth += 1;
        Ok(())
    }

    fn in_object(&self) -> bool {
        let top = self.depth.wrapping_sub(1);
        self.bits
            .get(top / 64)
            .is_some_and(|word| word >> (top % 64) & 1 == 1)
    }
}

/// A place in a text that is being passed over.
#[derive(Clone, Debug)]
pub(super) struct Scan<'a> {
    text: &'a [u8],
    pub(super) at: usize,
    /// Where the key that was read last ends, before its closing quote.
    pub(super) key_end: usize,
    dialect: Dialect,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a [u8], dialect: Dialect) -> Scan<'a> {
        Scan {
            text,
            at: 0,
            key_end: 0,
            dialect,
        }
    }

    pub(super) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        self.text.get(start..end).unwrap_or_default()
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn wrong<T>(&self) -> Result<T, Defect> {
        Err(Defect::Syntax { at: self.at })
    }

    pub(super) fn space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    pub(super) fn expect(&mut self, byte: u8) -> Result<(), Defect> {
        if self.peek() != Some(byte) {
            return self.wrong();
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), Defect> {
        self.space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            self.wrong()
        }
    }

    pub(super) fn spanned_value(&mut self) -> Result<&'a [u8], Defect> {
        self.space();
        let start = self.at;
        self.value()?;
        Ok(self.slice(start, self.at))
    }

    /// Passes over one value.
    fn value(&mut self) -> Result<(), Defect> {
        let mut levels = Levels::default();
        loop {
            self.space();
            let Some(byte) = self.peek() else {
                return self.wrong();
            };
            match byte {
                b'"' => self.string()?,
                b'{' => {
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(b'}') {
                        levels.push(true)?;
                        self.key()?;
                        continue;
                    }
                    self.at += 1;
                }
                b'[' => {
                    self.at += 1;
                    self.space();
                    if self.peek() != Some(b']') {
                        levels.push(false)?;
                        continue;
                    }
                    self.at += 1;
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                b'N' if self.dialect == Dialect::Python => self.word(b"NaN")?,
                b'I' if self.dialect == Dialect::Python => self.word(b"Infinity")?,
                _ => return self.wrong(),
            }
            if self.close(&mut levels)? {
                return Ok(());
            }
        }
    }

    /// After a value: closes the levels that end here, and passes the comma. True when the outermost value is complete.
    fn close(&mut self, levels: &mut Levels) -> Result<bool, Defect> {
        while levels.depth > 0 {
            self.space();
            let in_object = levels.in_object();
            match self.peek() {
                Some(b',') => {
                    self.at += 1;
                    if in_object {
                        self.space();
                        self.key()?;
                    }
                    return Ok(false);
                }
                Some(b'}') if in_object => {}
                Some(b']') if !in_object => {}
                _ => return self.wrong(),
            }
            self.at += 1;
            levels.depth -= 1;
        }
        Ok(true)
    }

    /// Passes over a key and its colon.
    pub(super) fn key(&mut self) -> Result<(), Defect> {
        if self.peek() != Some(b'"') {
            return self.wrong();
        }
        self.string()?;
        self.key_end = self.at - 1;
        self.space();
        self.expect(b':')
    }

    fn string(&mut self) -> Result<(), Defect> {
        self.at += 1;
        loop {
            self.at = find_special(self.text, self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                            self.at += 1;
                        }
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                                    return self.wrong();
                                }
                                self.at += 1;
                            }
                        }
                        _ => return self.wrong(),
                    }
                }
                _ => return self.wrong(),
            }
        }
    }

    fn digits(&mut self) -> Result<usize, Defect> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            return self.wrong();
        }
        Ok(self.at - start)
    }

    fn number(&mut self) -> Result<(), Defect> {
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.peek() == Some(b'I') && self.dialect == Dialect::Python {
                return self.word(b"Infinity");
            }
        }
        let integer_digits = match self.peek() {
            Some(b'0') => {
                self.at += 1;
                1
            }
            _ => self.digits()?,
        };
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            integer = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        if integer && integer_digits > MAX_INTEGER_DIGITS {
            return Err(Defect::LongInteger);
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Defect> {
        if self.slice(self.at, self.at + word.len()) != word {
            return self.wrong();
        }
        self.at += word.len();
        Ok(())
    }
}
