//! A JSON scanner whose complaints are those of Go's `encoding/json`.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Nesting beyond this is refused. Go stops at 10,000, at the price of a stack that grows; no
/// Kubernetes object comes near either.
const DEPTH_MAX: usize = 256;

/// Not JSON, in Go's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SyntaxError(pub String);

type Result<T> = std::result::Result<T, SyntaxError>;

/// What a value begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Token {
    /// The word for it in Go's type errors.
    pub fn go_name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Number => "number",
            Self::Bool => "bool",
            Self::Null => "null",
        }
    }
}

pub(crate) struct Scanner<'b> {
    bytes: &'b [u8],
    pos: usize,
    depth: usize,
}

impl<'b> Scanner<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, pos: 0, depth: 0 }
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.bytes.get(self.pos) {
            self.pos += 1;
        }
        self.bytes.get(self.pos).copied()
    }

    /// The complaint about the byte at the current position, or about the end of input.
    fn wrong<T>(&self, context: &str) -> Result<T> {
        Err(SyntaxError(match self.bytes.get(self.pos) {
            None => "unexpected end of JSON input".to_owned(),
            Some(byte) => format!("invalid character {} {context}", quote_byte(*byte)),
        }))
    }

    /// What comes next, without consuming it.
    pub fn token(&mut self) -> Result<Token> {
        Ok(match self.peek() {
            Some(b'{') => Token::Object,
            Some(b'[') => Token::Array,
            Some(b'"') => Token::String,
            Some(b'-' | b'0'..=b'9') => Token::Number,
            Some(b't' | b'f') => Token::Bool,
            Some(b'n') => Token::Null,
            _ => return self.wrong("looking for beginning of value"),
        })
    }

    /// Nothing but white space may follow.
    pub fn end(&mut self) -> Result<()> {
        if self.peek().is_some() { self.wrong("after top-level value") } else { Ok(()) }
    }

    fn enter(&mut self) -> Result<()> {
        self.pos += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            Err(SyntaxError("exceeded max depth".to_owned()))
        } else {
            Ok(())
        }
    }

    /// Enters an object; call [`Scanner::key`] until it answers None.
    pub fn enter_object(&mut self) -> Result<()> {
        self.enter()
    }

    /// The next key, its colon consumed; None at the end of the object, which is consumed.
    pub fn key(&mut self, first: bool) -> Result<Option<Cow<'b, str>>> {
        match self.peek() {
            Some(b'}') => {
                self.pos += 1;
                self.depth -= 1;
                return Ok(None);
            }
            Some(b',') if !first => {
                self.pos += 1;
                self.peek();
            }
            _ if !first => return self.wrong("after object key:value pair"),
            _ => {}
        }
        if self.bytes.get(self.pos) != Some(&b'"') {
            return self.wrong("looking for beginning of object key string");
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return self.wrong("after object key");
        }
        self.pos += 1;
        Ok(Some(key))
    }

    pub fn enter_array(&mut self) -> Result<()> {
        self.enter()
    }

    /// Whether another item follows; the closing bracket is consumed.
    pub fn item(&mut self, first: bool) -> Result<bool> {
        match self.peek() {
            Some(b']') => {
                self.pos += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.pos += 1;
                Ok(true)
            }
            _ if !first => self.wrong("after array element"),
            _ => Ok(true),
        }
    }

    /// The string that begins here.
    pub fn string(&mut self) -> Result<Cow<'b, str>> {
        let start = self.pos + 1;
        self.pos = start;
        loop {
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    let text = String::from_utf8_lossy(&self.bytes[start..self.pos]);
                    self.pos += 1;
                    return Ok(text);
                }
                Some(b'\\') => return self.escaped(start).map(Cow::Owned),
                Some(0..=0x1f) | None => return self.wrong("in string literal"),
                Some(_) => self.pos += 1,
            }
        }
    }

    /// The rest of a string from its first escape on.
    fn escaped(&mut self, start: usize) -> Result<String> {
        let mut text = Vec::from(&self.bytes[start..self.pos]);
        loop {
            match self.bytes.get(self.pos) {
                Some(b'"') => {
                    self.pos += 1;
                    return Ok(match String::from_utf8(text) {
                        Ok(text) => text,
                        Err(wrong) => String::from_utf8_lossy(wrong.as_bytes()).into_owned(),
                    });
                }
                Some(b'\\') => {
                    self.pos += 1;
                    let c = self.escape()?;
                    text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(0..=0x1f) | None => return self.wrong("in string literal"),
                Some(byte) => {
                    text.push(*byte);
                    self.pos += 1;
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let c = match self.bytes.get(self.pos) {
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(*c),
            Some(b'u') => {
                self.pos += 1;
                return self.unicode();
            }
            _ => return self.wrong("in string escape code"),
        };
        self.pos += 1;
        Ok(c)
    }

    /// The digits of `\u`; a lone surrogate becomes U+FFFD, as in Go.
    fn unicode(&mut self) -> Result<char> {
        let high = self.hex4()?;
        if !(0xd800..0xdc00).contains(&high) {
            return Ok(char::from_u32(high).unwrap_or('\u{fffd}'));
        }
        let rewind = self.pos;
        if self.bytes[self.pos..].starts_with(b"\\u") {
            self.pos += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let code = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            self.pos = rewind;
        }
        Ok('\u{fffd}')
    }

    fn hex4(&mut self) -> Result<u32> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.bytes.get(self.pos).and_then(|b| char::from(*b).to_digit(16));
            let Some(digit) = digit else {
                return self.wrong("in \\u hexadecimal character escape");
            };
            code = code * 16 + digit;
            self.pos += 1;
        }
        Ok(code)
    }

    /// The literal of the number that begins here.
    pub fn number(&mut self) -> Result<&'b str> {
        let start = self.pos;
        if self.bytes[self.pos] == b'-' {
            self.pos += 1;
        }
        match self.bytes.get(self.pos) {
            Some(b'0') => self.pos += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.wrong("in numeric literal"),
        }
        if self.bytes.get(self.pos) == Some(&b'.') {
            self.pos += 1;
            if !matches!(self.bytes.get(self.pos), Some(b'0'..=b'9')) {
                return self.wrong("after decimal point in numeric literal");
            }
            self.digits();
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.pos) {
            self.pos += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.pos) {
                self.pos += 1;
            }
            if !matches!(self.bytes.get(self.pos), Some(b'0'..=b'9')) {
                return self.wrong("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(std::str::from_utf8(&self.bytes[start..self.pos]).expect("digits are ASCII"))
    }

    fn digits(&mut self) {
        while let Some(b'0'..=b'9') = self.bytes.get(self.pos) {
            self.pos += 1;
        }
    }

    pub fn bool(&mut self) -> Result<bool> {
        if self.bytes[self.pos] == b't' {
            self.word("true").map(|()| true)
        } else {
            self.word("false").map(|()| false)
        }
    }

    pub fn null(&mut self) -> Result<()> {
        self.word("null")
    }

    fn word(&mut self, word: &str) -> Result<()> {
        for expected in word.bytes() {
            if self.bytes.get(self.pos) != Some(&expected) {
                return self
                    .wrong(&format!("in literal {word} (expecting {})", quote_byte(expected)));
            }
            self.pos += 1;
        }
        Ok(())
    }

    /// Passes over a value, checking its syntax; answers its bytes.
    pub fn skip(&mut self) -> Result<&'b [u8]> {
        let token = self.token()?;
        let start = self.pos;
        match token {
            Token::String => drop(self.string()?),
            Token::Number => drop(self.number()?),
            Token::Bool => drop(self.bool()?),
            Token::Null => self.null()?,
            Token::Object => {
                self.enter_object()?;
                let mut first = true;
                while self.key(first)?.is_some() {
                    first = false;
                    self.skip()?;
                }
            }
            Token::Array => {
                self.enter_array()?;
                let mut first = true;
                while self.item(first)? {
                    first = false;
                    self.skip()?;
                }
            }
        }
        Ok(&self.bytes[start..self.pos])
    }

    /// The value that comes next, as it is. `duplicate` hears of each key that an object repeats, and of the
    /// place behind it.
    pub fn any(&mut self, duplicate: &mut dyn FnMut(&str, usize)) -> Result<Value> {
        Ok(match self.token()? {
            Token::String => Value::String(self.string()?.into_owned()),
            Token::Number => number(self.number()?),
            Token::Bool => Value::Bool(self.bool()?),
            Token::Null => {
                self.null()?;
                Value::Null
            }
            Token::Object => {
                self.enter_object()?;
                let mut map = Map::new();
                while let Some(key) = self.key(map.is_empty())? {
                    let place = self.pos;
                    let value = self.any(duplicate)?;
                    if map.contains_key(key.as_ref()) {
                        duplicate(&key, place);
                    }
                    map.insert(key.into_owned(), value);
                }
                Value::Object(map)
            }
            Token::Array => {
                self.enter_array()?;
                let mut list = Vec::new();
                while self.item(list.is_empty())? {
                    list.push(self.any(duplicate)?);
                }
                Value::Array(list)
            }
        })
    }
}

/// A number without a schema: an int64 when it is one, else a double.
pub(crate) fn number(literal: &str) -> Value {
    if let Ok(n) = literal.parse::<i64>() {
        return Value::Number(n.into());
    }
    let float = literal.parse::<f64>().ok().filter(|f| f.is_finite());
    // Beyond a double there is no JSON number that Go would keep either.
    float.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

/// A byte as Go's scanner quotes it: `'x'`.
fn quote_byte(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        0x07 => "'\\a'".to_owned(),
        0x08 => "'\\b'".to_owned(),
        0x0b => "'\\v'".to_owned(),
        0x0c => "'\\f'".to_owned(),
        0..=0x1f | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_those_of_go() {
        #[track_caller]
        fn check(text: &str, complaint: &str) {
            let mut scanner = Scanner::new(text.as_bytes());
            let result = scanner.skip().and_then(|_| scanner.end());
            assert_eq!(result.map_err(|e| e.0), Err(complaint.to_owned()), "{text}");
            let mut scanner = Scanner::new(text.as_bytes());
            let result = scanner.any(&mut |_, _| {}).and_then(|_| scanner.end());
            assert_eq!(result.map_err(|e| e.0), Err(complaint.to_owned()), "{text}");
        }
        const EOF: &str = "unexpected end of JSON input";
        check("", EOF);
        check("{", EOF);
        check("[1", EOF);
        check("\"a", EOF);
        check("\"\\u12", EOF);
        check("x", "invalid character 'x' looking for beginning of value");
        check("[1,]", "invalid character ']' looking for beginning of value");
        check("{,}", "invalid character ',' looking for beginning of object key string");
        check("{\"a\":1,}", "invalid character '}' looking for beginning of object key string");
        check("{\"a\" 1}", "invalid character '1' after object key");
        check("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair");
        check("[1 2]", "invalid character '2' after array element");
        check("1 2", "invalid character '2' after top-level value");
        check("01", "invalid character '1' after top-level value");
        check("-", EOF);
        check("-a", "invalid character 'a' in numeric literal");
        check("1.a", "invalid character 'a' after decimal point in numeric literal");
        check("1ea", "invalid character 'a' in exponent of numeric literal");
        check("tru", EOF);
        check("trux", "invalid character 'x' in literal true (expecting 'e')");
        check("\"\n\"", "invalid character '\\n' in string literal");
        check("\"\\q\"", "invalid character 'q' in string escape code");
        check("\"\\u12x4\"", "invalid character 'x' in \\u hexadecimal character escape");
        check(&"[".repeat(10_000), "exceeded max depth");
    }

    #[test]
    fn values() {
        #[track_caller]
        fn check(text: &[u8], value: Value) {
            assert_eq!(Scanner::new(text).any(&mut |_, _| {}), Ok(value));
        }
        check(
            br#" {"a" : [1, -2.5, "x\n\u00e9\ud83d\ude00", true, null, {}]} "#,
            serde_json::json!({"a": [1, -2.5, "x\né😀", true, null, {}]}),
        );
        check(br#""\ud83dx""#, "\u{fffd}x".into());
        check(b"\"\xff\"", "\u{fffd}".into());
        check(b"12345678901234567890", serde_json::json!(12345678901234567000.0));
        let mut seen = Vec::new();
        Scanner::new(br#"{"a":1,"a":2}"#).any(&mut |k, _| seen.push(k.to_owned())).expect("valid");
        assert_eq!(seen, ["a"]);
    }
}
