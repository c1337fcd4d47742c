//! Text into tokens. <https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax>

use std::sync::Arc;

use crate::error::Issue;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(String),
    Int(i64),
    /// Written without a sign, and one too large for a positive integer: only its negation exists.
    IntMin,
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// An operator or a bracket.
    Mark(&'static str),
    End,
}

/// A token and the byte offset at which it begins.
#[derive(Clone, Debug)]
pub struct At {
    pub token: Token,
    pub at: u32,
}

/// Longest first.
const MARKS: [&str; 26] = [
    "&&", "||", "<=", ">=", "==", "!=", "[", "]", "{", "}", "(", ")", ".", ",", ":", "?", "!", "-",
    "+", "*", "/", "%", "<", ">", "=", "|",
];

pub fn tokens(text: &str) -> Result<Vec<At>, Issue> {
    let mut lexer = Lexer { text, at: 0 };
    let mut all = Vec::new();
    loop {
        lexer.skip_blank();
        let at = lexer.at as u32;
        let token = lexer.token().map_err(|message| Issue { at, message })?;
        let ended = token == Token::End;
        all.push(At { token, at });
        if ended {
            return Ok(all);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn token(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token::End) };
        if let Some(prefix) = string_prefix(rest) {
            return self.string(prefix);
        }
        if first.is_ascii_digit()
            || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit()))
        {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let end =
                rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            self.at += end;
            return Ok(Token::Ident(rest[..end].to_owned()));
        }
        match MARKS.iter().find(|m| rest.starts_with(**m)) {
            Some(mark) => {
                self.at += mark.len();
                Ok(Token::Mark(mark))
            }
            None => Err(format!("Syntax error: token recognition error at: '{first}'")),
        }
    }

    fn number(&mut self) -> Result<Token, String> {
        let rest = self.rest();
        let wrong =
            |what: &str, text: &str| format!("Syntax error: invalid {what} literal: {text}");
        if let Some(hex) = rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
            let unsigned = hex[end..].starts_with(['u', 'U']);
            self.at += 2 + end + usize::from(unsigned);
            let value =
                u64::from_str_radix(&hex[..end], 16).map_err(|_| wrong("int", &hex[..end]))?;
            return match (unsigned, i64::try_from(value)) {
                (true, _) => Ok(Token::Uint(value)),
                (false, Ok(value)) => Ok(Token::Int(value)),
                (false, Err(_)) => Err(wrong("int", &hex[..end])),
            };
        }
        let (end, double) = number_end(rest);
        let digits = &rest[..end];
        self.at += end;
        if double {
            return digits.parse().map(Token::Double).map_err(|_| wrong("double", digits));
        }
        if rest[end..].starts_with(['u', 'U']) {
            self.at += 1;
            return digits.parse().map(Token::Uint).map_err(|_| wrong("uint", digits));
        }
        match digits.parse::<u64>() {
            Ok(n) if n <= i64::MAX as u64 => Ok(Token::Int(n as i64)),
            Ok(n) if n == i64::MIN.unsigned_abs() => Ok(Token::IntMin),
            _ => Err(wrong("int", digits)),
        }
    }

    fn string(&mut self, prefix: Prefix) -> Result<Token, String> {
        self.at += prefix.length;
        let rest = self.rest();
        let quote = if rest.starts_with(['"']) { '"' } else { '\'' };
        let triple: String = std::iter::repeat_n(quote, 3).collect();
        let close = if rest.starts_with(&triple) { triple } else { quote.to_string() };
        self.at += close.len();
        let mut out = Vec::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(&close) {
                self.at += close.len();
                break;
            }
            let Some(c) = rest.chars().next() else { return Err(unclosed()) };
            if close.len() == 1 && (c == '\n' || c == '\r') {
                return Err(unclosed());
            }
            if c == '\\' && !prefix.raw {
                self.escape(prefix.bytes, &mut out)?;
                continue;
            }
            self.at += c.len_utf8();
            // A backslash of a raw string shields the quote, and stays.
            if c == '\\'
                && let Some(next) = self.rest().chars().next()
            {
                self.at += next.len_utf8();
                push(&mut out, c);
                push(&mut out, next);
                continue;
            }
            push(&mut out, c);
        }
        match prefix.bytes {
            true => Ok(Token::Bytes(out.into())),
            false => {
                let text = String::from_utf8(out)
                    .map_err(|_| "Syntax error: invalid string".to_owned())?;
                Ok(Token::String(text.into()))
            }
        }
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), String> {
        let rest = &self.rest()[1..];
        let bad = || "Syntax error: unable to unescape string".to_owned();
        let c = rest.chars().next().ok_or_else(unclosed)?;
        let number = |from: usize, length: usize, radix: u32| {
            rest.get(from..from + length)
                .filter(|d| d.chars().all(|c| c.is_digit(radix)))
                .and_then(|d| u32::from_str_radix(d, radix).ok())
                .ok_or_else(bad)
        };
        let plain = match c {
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            '\\' | '?' | '"' | '\'' | '`' => Some(c),
            _ => None,
        };
        if let Some(plain) = plain {
            self.at += 2;
            push(out, plain);
            return Ok(());
        }
        let (value, length) = match c {
            'x' | 'X' => (number(1, 2, 16)?, 3),
            'u' if !bytes => (number(1, 4, 16)?, 5),
            'U' if !bytes => (number(1, 8, 16)?, 9),
            '0'..='3' => (number(0, 3, 8)?, 3),
            _ => return Err(bad()),
        };
        self.at += 1 + length;
        match bytes {
            true => out.push(u8::try_from(value).map_err(|_| bad())?),
            false => push(out, char::from_u32(value).ok_or_else(bad)?),
        }
        Ok(())
    }
}

fn unclosed() -> String {
    "Syntax error: token recognition error: a string is not closed".to_owned()
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Where a decimal number ends, and whether it has a fraction or an exponent.
fn number_end(text: &str) -> (usize, bool) {
    let bytes = text.as_bytes();
    let digits = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let mut end = digits(0);
    let mut double = false;
    if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
        end = digits(end + 1);
        double = true;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = digits(end + 1 + sign);
        if exponent > end + 1 + sign {
            return (exponent, true);
        }
    }
    (end, double)
}

struct Prefix {
    length: usize,
    raw: bool,
    bytes: bool,
}

/// `r`, `b`, `rb` or `br` before a quote, or a quote at once.
fn string_prefix(text: &str) -> Option<Prefix> {
    let (mut raw, mut bytes) = (false, false);
    for (length, c) in text.char_indices().take(3) {
        match c {
            '"' | '\'' => return Some(Prefix { length, raw, bytes }),
            'r' | 'R' if !raw => raw = true,
            'b' | 'B' if !bytes => bytes = true,
            _ => return None,
        }
    }
    None
}
