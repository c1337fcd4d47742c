//! What comes out: rows, their targets, one table, the same as JSON.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// One number.
pub struct Row {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub target: Target,
    pub how: String,
}

#[derive(Clone, Copy)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// A number that explains others.
    None,
}

impl Row {
    pub fn new(
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        target: Target,
        how: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), value, unit, target, how: how.into() }
    }

    /// `ok`, `MISS`, or nothing.
    fn verdict(&self) -> &'static str {
        let reached = match self.target {
            Target::AtMost(limit) => self.value <= limit,
            Target::AtLeast(limit) => self.value >= limit,
            Target::None => return "",
        };
        if reached { "ok" } else { "MISS" }
    }
}

/// Everything that was measured, and what could not be.
#[derive(Default)]
pub struct Report {
    pub rows: Vec<Row>,
    pub failures: Vec<(&'static str, String)>,
}

impl Report {
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let rows: Vec<Value> = self.rows.iter().map(json_row).collect();
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|(name, why)| json!({"measurement": name, "error": why}))
            .collect();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let document = json!({
            "machine": { "cores": cores, "cpu": cpu_model(), "kernel": read_trimmed("/proc/sys/kernel/osrelease") },
            "rows": rows,
            "failures": failures,
        });
        let text = serde_json::to_string_pretty(&document).context("the report")?;
        std::fs::write(path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn json_row(row: &Row) -> Value {
    let target = match row.target {
        Target::AtMost(limit) => json!({"at_most": limit}),
        Target::AtLeast(limit) => json!({"at_least": limit}),
        Target::None => Value::Null,
    };
    json!({
        "what": row.what, "value": row.value, "unit": row.unit, "target": target,
        "verdict": row.verdict(), "how": row.how,
    })
}

fn read_trimmed(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn cpu_model() -> String {
    let info = read_trimmed("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let lines: Vec<[String; 5]> = self.rows.iter().map(cells).collect();
        let head = ["row", "measured", "target", "", "how"].map(str::to_owned);
        let width = |column: usize| {
            let cells = lines.iter().chain([&head]).map(|line| line[column].chars().count());
            cells.max().unwrap_or(0)
        };
        let [a, b, c, d] = [0, 1, 2, 3].map(width);
        for [what, measured, target, verdict, how] in [&head].into_iter().chain(&lines) {
            writeln!(f, "{what:a$}  {measured:>b$}  {target:>c$}  {verdict:d$}  {how}")?;
        }
        for (name, why) in &self.failures {
            writeln!(f, "NOT MEASURED: {name}: {why}")?;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 5] {
    let with_unit = |value: f64| format!("{} {}", number(value), row.unit).trim_end().to_owned();
    let target = match row.target {
        Target::AtMost(limit) => format!("≤ {}", with_unit(limit)),
        Target::AtLeast(limit) => format!("≥ {}", with_unit(limit)),
        Target::None => String::new(),
    };
    [row.what.clone(), with_unit(row.value), target, row.verdict().to_owned(), row.how.clone()]
}

/// Three significant digits at least, no more after the point than they need.
fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value below which `share` (0 to 1) of the values are; sorts them.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let index = (share * last as f64).round() as usize;
    values.get(index.min(last)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        #[track_caller]
        fn check(value: f64, target: Target, verdict: &str) {
            assert_eq!(Row::new("x", value, "ms", target, "").verdict(), verdict);
        }
        check(1.0, Target::AtMost(1.0), "ok");
        check(1.1, Target::AtMost(1.0), "MISS");
        check(f64::NAN, Target::AtMost(1.0), "MISS");
        check(0.9, Target::AtLeast(1.0), "MISS");
        check(1.0, Target::None, "");
    }

    #[test]
    fn percentiles() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.5), 50.0);
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut [7.0], 0.99), 7.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }

    #[test]
    fn the_table_lines_up() {
        let rows = vec![
            Row::new("first", 0.123, "s", Target::AtMost(1.0), "by hand"),
            Row::new("the second", 12345.6, "/s", Target::None, ""),
        ];
        let report = Report { rows, failures: vec![("http", "no wrk".into())] };
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "first         0.12 s   ≤ 1 s  ok  by hand");
        assert_eq!(lines[2].trim_end(), "the second  12346 /s");
        assert_eq!(lines[3], "NOT MEASURED: http: no wrk");
    }
}
