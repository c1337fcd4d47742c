//! Links in HTML, found and changed while it streams by. Nothing but the values of attributes that
//! hold URLs is touched, not even bad HTML.
//! <https://html.spec.whatwg.org/multipage/indices.html#attributes-3>

/// A tag that is longer goes by as it is.
const TAG_BYTES_MAX: usize = 64 << 10;

/// Which attributes of which elements hold URLs.
const URLS: [(&str, &[&str]); 26] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
    ("track", &["src"]),
];

/// Elements whose content is no HTML.
const TEXTS: [&str; 4] = ["script", "style", "textarea", "title"];

#[derive(Default)]
enum State {
    #[default]
    Html,
    Comment,
    /// Until the end tag of that name.
    Text(&'static str),
}

/// Takes HTML in any pieces. Holds at most one tag.
#[derive(Default)]
pub struct Rewriter {
    state: State,
    waiting: Vec<u8>,
}

impl Rewriter {
    pub fn push(&mut self, html: &[u8], out: &mut Vec<u8>, change: impl Fn(&str) -> String) {
        let mut whole = std::mem::take(&mut self.waiting);
        whole.extend_from_slice(html);
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            match self.step(rest, out, &change) {
                0 => break,
                done => rest = &rest[done..],
            }
        }
        self.waiting = rest.to_vec();
    }

    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.waiting);
    }

    /// Deals with the beginning of `html`; answers how many bytes, 0 when it must see more.
    fn step(&mut self, html: &[u8], out: &mut Vec<u8>, change: &impl Fn(&str) -> String) -> usize {
        match self.state {
            State::Html => self.html(html, out, change),
            State::Comment => self.until(html, b"-->", out),
            State::Text(name) => {
                let end = format!("</{name}");
                self.until(html, end.as_bytes(), out)
            }
        }
    }

    /// Passes on everything before the end, which it leaves.
    fn until(&mut self, html: &[u8], end: &[u8], out: &mut Vec<u8>) -> usize {
        let found = html.windows(end.len()).position(|w| w.eq_ignore_ascii_case(end));
        let done = match found {
            Some(at) => {
                self.state = State::Html;
                // What ends a comment or a text is passed on too: it must not begin a tag again.
                at + end.len()
            }
            // The end may be cut in two.
            None => html.len().saturating_sub(end.len() - 1),
        };
        out.extend_from_slice(&html[..done]);
        done
    }

    fn html(&mut self, html: &[u8], out: &mut Vec<u8>, change: &impl Fn(&str) -> String) -> usize {
        let before = html.iter().position(|b| *b == b'<').unwrap_or(html.len());
        if before > 0 {
            out.extend_from_slice(&html[..before]);
            return before;
        }
        if html.starts_with(b"<!--") {
            self.state = State::Comment;
            out.extend_from_slice(b"<!--");
            return 4;
        }
        if html.len() < 4 && b"<!--".starts_with(html) {
            return 0;
        }
        if !html[1].is_ascii_alphabetic() {
            out.push(b'<');
            return 1;
        }
        match tag_end(html) {
            Some(end) => {
                self.tag(&html[..end], out, change);
                end
            }
            None if html.len() > TAG_BYTES_MAX => {
                out.push(b'<');
                1
            }
            None => 0,
        }
    }

    /// A whole start tag, `<` to `>`.
    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>, change: &impl Fn(&str) -> String) {
        let end =
            tag[1..].iter().position(|b| !b.is_ascii_alphanumeric()).map_or(tag.len(), |n| n + 1);
        let name = String::from_utf8_lossy(&tag[1..end]).to_ascii_lowercase();
        if let Some(text) = TEXTS.iter().find(|t| **t == name)
            && !tag.ends_with(b"/>")
        {
            self.state = State::Text(text);
        }
        let Some((_, urls)) = URLS.iter().find(|(element, _)| *element == name) else {
            return out.extend_from_slice(tag);
        };
        let mut copied = 0;
        for Attribute { name, value } in attributes(tag, end) {
            let name = String::from_utf8_lossy(&tag[name]).to_ascii_lowercase();
            let Some(link) = std::str::from_utf8(&tag[value.clone()]).ok() else { continue };
            if urls.contains(&name.as_str()) {
                let trimmed = link.trim();
                out.extend_from_slice(&tag[copied..value.start]);
                out.extend_from_slice(change(trimmed).as_bytes());
                copied = value.end;
            }
        }
        out.extend_from_slice(&tag[copied..]);
    }
}

/// Behind the `>` that ends a tag, which one inside quotes does not.
fn tag_end(html: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in html.iter().enumerate().skip(1) {
        match (quote, byte) {
            (Some(q), b) if b == q => quote = None,
            (Some(_), _) => {}
            // A quote begins a value, nowhere else is it one.
            (None, b'"' | b'\'') if after_equals => quote = Some(byte),
            (None, b'>') => return Some(at + 1),
            (None, _) => {}
        }
        after_equals = *byte == b'=' || (after_equals && byte.is_ascii_whitespace());
    }
    None
}

/// Where name and value are in the tag.
struct Attribute {
    name: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
}

/// Those that have a value.
fn attributes(tag: &[u8], mut at: usize) -> Vec<Attribute> {
    let mut found = Vec::new();
    let skip = |mut at: usize, over: fn(u8) -> bool| {
        while at < tag.len() && over(tag[at]) {
            at += 1;
        }
        at
    };
    let space = |b: u8| b.is_ascii_whitespace();
    while at < tag.len() {
        at = skip(at, |b| b.is_ascii_whitespace() || b == b'/' || b == b'>');
        let start = at;
        at = skip(at, |b| !b.is_ascii_whitespace() && !matches!(b, b'=' | b'>' | b'/'));
        let name = start..at;
        let equals = skip(at, space);
        if tag.get(equals) != Some(&b'=') {
            // A stray sign is stepped over.
            at = at.max(start + usize::from(start == at));
            continue;
        }
        let start = skip(equals + 1, space);
        let value = match tag.get(start) {
            Some(b'"') => start + 1..skip(start + 1, |b| b != b'"'),
            Some(b'\'') => start + 1..skip(start + 1, |b| b != b'\''),
            _ => start..skip(start, |b| !b.is_ascii_whitespace() && b != b'>'),
        };
        at = value.end + usize::from(matches!(tag.get(start), Some(b'"' | b'\'')));
        found.push(Attribute { name, value });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(html: &str, pieces: usize) -> String {
        let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
        for piece in html.as_bytes().chunks(pieces) {
            rewriter.push(piece, &mut out, |link| format!("P{link}"));
        }
        rewriter.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    /// However it is cut, the same comes out.
    #[track_caller]
    fn check(html: &str, expected: &str) {
        for pieces in [1, 2, 3, 7, html.len().max(1)] {
            assert_eq!(rewritten(html, pieces), expected, "in pieces of {pieces}");
        }
    }

    #[test]
    fn links_and_nothing_else() {
        check(r#"<a href="/x">y</a>"#, r#"<a href="P/x">y</a>"#);
        check("<A class=b HREF=/x>", "<A class=b HREF=P/x>");
        check("<img alt='>' src = '/i.png' />", "<img alt='>' src = 'P/i.png' />");
        check(r#"<a name="n" href='/x' href="/y">"#, r#"<a name="n" href='P/x' href="P/y">"#);
        check(r#"<p title="/x"> 1 < 2 <b>"#, r#"<p title="/x"> 1 < 2 <b>"#);
        check(r#"<div data-href="/x">"#, r#"<div data-href="/x">"#);
        check(r#"<!-- <a href="/x"> --><a href="/y">"#, r#"<!-- <a href="/x"> --><a href="P/y">"#);
        check(
            r#"<script src="/s.js">"<a href='/x'>"</script><a href="/y">"#,
            r#"<script src="P/s.js">"<a href='/x'>"</script><a href="P/y">"#,
        );
        check(
            "<!DOCTYPE html><html><body background=/b>",
            "<!DOCTYPE html><html><body background=P/b>",
        );
        check("<a href>", "<a href>");
    }

    #[test]
    fn bad_html_goes_by() {
        for html in [
            "",
            "<",
            "<a",
            "<a href=\"/x",
            "</",
            "<!-",
            "<!-- never ends",
            "<script>x",
            "<a = = '>",
            "<a//>",
        ] {
            check(html, html);
        }
        let long = format!("<a x=\"{}\" href=\"/y\">", "z".repeat(TAG_BYTES_MAX * 2));
        assert_eq!(rewritten(&long, 4096), long);
    }
}
