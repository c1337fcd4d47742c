//! The text format that every scraper reads, made of OpenMetrics.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>

use std::fmt::Write as _;

use super::admission;

/// The older text format: counters are declared under the name of their samples, and nothing marks
/// the end.
pub fn classic(openmetrics: &str) -> String {
    let mut out = String::with_capacity(openmetrics.len());
    let mut lines = openmetrics.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "# EOF" || line.starts_with("# UNIT") {
            continue;
        }
        if let Some(name) = admission::NOT_TOTAL.iter().find(|name| line.contains(**name)) {
            writeln!(out, "{}", line.replacen(&format!("{name}_total"), name, 1))
                .expect("writing to a String cannot fail");
            continue;
        }
        let declares = |line: &str, what: &str| {
            line.strip_prefix(what)
                .and_then(|l| l.split_once(' '))
                .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        };
        let next_is_counter = lines
            .peek()
            .is_some_and(|next| next.starts_with("# TYPE") && next.ends_with(" counter"));
        match (declares(line, "# HELP "), declares(line, "# TYPE ")) {
            (Some((name, help)), _) if next_is_counter => {
                writeln!(out, "# HELP {name}_total {help}")
            }
            (_, Some((name, kind))) if kind == "counter" => {
                writeln!(out, "# TYPE {name}_total counter")
            }
            _ => writeln!(out, "{line}"),
        }
        .expect("writing to a String cannot fail");
    }
    out
}

/// Sum and count of a histogram once more, as the summary that stands beside it.
pub fn summary(name: &str, text: &mut String) {
    let mut shown = format!("# HELP {name}_summary The same without buckets.\n");
    writeln!(shown, "# TYPE {name}_summary summary").expect("writing to a String cannot fail");
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name) else { continue };
        if rest.starts_with("_sum") || rest.starts_with("_count") {
            writeln!(shown, "{name}_summary{rest}").expect("writing to a String cannot fail");
        }
    }
    text.push_str(&shown);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_format() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{x=\"1\"} 2\n# HELP b Now.\n# TYPE b gauge\nb 1\n# EOF\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1\"} 2\n# HELP b Now.\n# TYPE b gauge\nb 1\n";
        assert_eq!(classic(open), expected);
    }
}
