//! JSON objects (RFC 8259) as qemu takes them for options: nested keys are joined by dots, all values are text, and strings may be in single
//! quotes.

use std::fmt;

/// Largest depth of nested objects.
pub(crate) const MAX_DEPTH: usize = 8;

/// Why a description cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Not JSON from this byte on.
    Syntax(usize),
    Depth,
    /// A list, the value of this key.
    List(String),
    /// This key is there twice.
    Twice(String),
}

/// The options of an object: `{"file": {"filename": "a"}}` is `file.filename` = `a`. The value `null` is an empty text.
pub(crate) fn flatten(text: &[u8]) -> Result<Vec<(String, String)>, Invalid> {
    let text = std::str::from_utf8(text).map_err(|e| Invalid::Syntax(e.valid_up_to()))?;
    let mut parser = Parser { text, at: 0, options: Vec::new() };
    parser.object("", MAX_DEPTH)?;
    parser.blanks();
    if parser.at == text.len() { Ok(parser.options) } else { Err(parser.syntax()) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    options: Vec<(String, String)>,
}

impl Parser<'_> {
    fn object(&mut self, prefix: &str, depth: usize) -> Result<(), Invalid> {
        let depth = depth.checked_sub(1).ok_or(Invalid::Depth)?;
        self.expect('{')?;
        if self.takes('}') {
            return Ok(());
        }
        loop {
            self.blanks();
            let key = format!("{prefix}{}", self.string()?);
            self.expect(':')?;
            self.value(key, depth)?;
            if !self.takes(',') {
                return self.expect('}');
            }
        }
    }

    fn value(&mut self, key: String, depth: usize) -> Result<(), Invalid> {
        self.blanks();
        let value = match self.rest().chars().next() {
            Some('{') => return self.object(&format!("{key}."), depth),
            Some('[') => return Err(Invalid::List(key)),
            Some('"' | '\'') => self.string()?,
            // A number, `true`, `false` or `null`.
            _ => match self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.'))? {
                null if null == "null" => String::new(),
                word => word,
            },
        };
        if self.options.iter().any(|(other, _)| *other == key) {
            return Err(Invalid::Twice(key));
        }
        self.options.push((key, value));
        Ok(())
    }

    /// A string in quotes.
    fn string(&mut self) -> Result<String, Invalid> {
        let quote = self.rest().chars().next().filter(|c| matches!(c, '"' | '\'')).ok_or(self.syntax())?;
        let mut text = String::new();
        self.at += 1;
        loop {
            match self.next()? {
                end if end == quote => return Ok(text),
                '\\' => text.push(self.escape()?),
                '\0'..='\x1f' => return Err(self.syntax()),
                c => text.push(c),
            }
        }
    }

    /// The rest of an escape sequence.
    fn escape(&mut self) -> Result<char, Invalid> {
        Ok(match self.next()? {
            c @ ('"' | '\'' | '\\' | '/') => c,
            'b' => '\x08',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let first = self.unit()?;
                let pair = (0xd800..0xdc00).contains(&first) && self.rest().starts_with("\\u");
                let units = if pair {
                    self.at += 2;
                    vec![first, self.unit()?]
                } else {
                    vec![first]
                };
                let mut chars = char::decode_utf16(units);
                match (chars.next(), chars.next()) {
                    (Some(Ok(c)), None) => c,
                    _ => return Err(self.syntax()),
                }
            }
            _ => return Err(self.syntax()),
        })
    }

    /// Four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, Invalid> {
        let digits = self.rest().get(..4).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let unit = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok()).ok_or(self.syntax())?;
        self.at += 4;
        Ok(unit)
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> Result<String, Invalid> {
        let rest = self.rest();
        let word = rest.split(|c| !belongs(c)).next().unwrap_or_default().to_owned();
        self.at += word.len();
        if word.is_empty() { Err(self.syntax()) } else { Ok(word) }
    }

    fn next(&mut self) -> Result<char, Invalid> {
        let c = self.rest().chars().next().ok_or(self.syntax())?;
        self.at += c.len_utf8();
        Ok(c)
    }

    fn takes(&mut self, c: char) -> bool {
        self.blanks();
        let found = self.rest().starts_with(c);
        self.at += if found { c.len_utf8() } else { 0 };
        found
    }

    fn expect(&mut self, c: char) -> Result<(), Invalid> {
        if self.takes(c) { Ok(()) } else { Err(self.syntax()) }
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn syntax(&self) -> Invalid {
        Invalid::Syntax(self.at)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Syntax(at) => write!(f, "no JSON at byte {at}"),
            Invalid::Depth => write!(f, "objects nested more than {MAX_DEPTH} deep"),
            Invalid::List(key) => write!(f, "key '{key}' is a list"),
            Invalid::Twice(key) => write!(f, "key '{key}' is there twice"),
        }
    }
}
