//! `/livez`, `/readyz` and `/healthz`: whole, check by check (`?verbose`), without some
//! (`?exclude=`), and each check by itself (`/readyz/ping`).
//! <https://kubernetes.io/docs/reference/using-api/health-checks/>

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use crate::body::Response;
use crate::error;
use crate::request::{Call, Query};
use crate::server::Inner;

struct Check {
    name: &'static str,
    well: bool,
}

/// Answers a path below one of the three; None for another path.
pub fn serve(server: &Inner, call: &Call, path: &str) -> Option<Response> {
    let mut words = path.trim_start_matches('/').splitn(2, '/');
    let name = words.next()?;
    if !matches!(name, "livez" | "readyz" | "healthz") {
        return None;
    }
    let checks = checks(server, name);
    let (code, text) = match words.next() {
        None => whole(name, &checks, &call.query),
        Some(one) => alone(checks.iter().find(|c| c.name == one)?),
    };
    let mut response = error::text(code, text);
    let nosniff = http::HeaderValue::from_static("nosniff");
    response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
    Some(response)
}

fn checks(server: &Inner, name: &str) -> Vec<Check> {
    let check = |name, well| Check { name, well };
    // The store answers from memory which revision it has: a failed one has ended the process.
    let mut checks = vec![check("ping", true), check("log", true), check("store", true)];
    if name != "livez" {
        checks.push(check("started", server.ready.load(Ordering::Acquire)));
        checks.push(check("shutdown", !server.stop.is_cancelled()));
    }
    checks
}

fn alone(check: &Check) -> (u16, String) {
    match check.well {
        true => (200, "ok".to_owned()),
        false => (500, format!("internal server error: {} failed\n", check.name)),
    }
}

fn whole(name: &str, checks: &[Check], query: &Query) -> (u16, String) {
    let mut unknown: Vec<&str> = query.all("exclude").collect();
    let (mut shown, mut well) = (String::new(), true);
    for check in checks {
        let excluded = query.all("exclude").any(|x| x == check.name);
        unknown.retain(|x| *x != check.name);
        let line = match (excluded, check.well) {
            (true, _) => "excluded: ok",
            (false, true) => "ok",
            (false, false) => "failed: reason withheld",
        };
        let sign = if excluded || check.well { '+' } else { '-' };
        well &= excluded || check.well;
        writeln!(shown, "[{sign}]{} {line}", check.name).expect("writing to a String cannot fail");
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        unknown.dedup();
        let quoted: Vec<String> = unknown.iter().map(|x| format!("{x:?}")).collect();
        let list = quoted.join(",");
        writeln!(shown, "warn: some health checks cannot be excluded: no matches for {list}")
            .expect("writing to a String cannot fail");
    }
    match (well, query.get("verbose")) {
        (false, _) => (500, format!("{shown}{name} check failed\n")),
        (true, None) => (200, "ok".to_owned()),
        (true, Some(_)) => (200, format!("{shown}{name} check passed\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, ready: bool, expected: (u16, &str)) {
        let checks = [Check { name: "ping", well: true }, Check { name: "started", well: ready }];
        let (code, text) = whole("readyz", &checks, &Query::parse(Some(query)));
        assert_eq!((code, text.as_str()), expected, "{query}");
    }

    #[test]
    fn texts() {
        check("", true, (200, "ok"));
        check("verbose", true, (200, "[+]ping ok\n[+]started ok\nreadyz check passed\n"));
        let failed = "[+]ping ok\n[-]started failed: reason withheld\nreadyz check failed\n";
        check("", false, (500, failed));
        check("exclude=started", false, (200, "ok"));
        check(
            "verbose&exclude=started&exclude=x",
            false,
            (
                200,
                "[+]ping ok\n[+]started excluded: ok\nwarn: some health checks cannot be excluded: no matches for \"x\"\nreadyz check passed\n",
            ),
        );
    }
}
