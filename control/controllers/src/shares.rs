//! Numbers that a user says as they are or in percent.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// How many of `of` that is; a share is rounded up or down.
/// (`GetScaledValueFromIntOrPercent` of k8s.io/apimachinery/pkg/util/intstr)
pub fn scaled(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent.saturating_mul(i64::from(of));
            (product.saturating_add(if round_up { 99 } else { 0 }) / 100) as i32
        }
    }
}
