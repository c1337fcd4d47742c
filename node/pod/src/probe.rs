//! One probe of a container: when it is due, what its results add up to (pure), and how it is done.
//! <https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/>

pub(crate) mod grpc;
pub(crate) mod http;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use crate::command;
use crate::outside::Network;
use crate::runtime::{RunId, Runtime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As Events begin.
    pub fn text(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    pub fn of(self, container: &api::Container) -> Option<&api::Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// What one execution told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    /// It counts as a success, but somebody should know.
    Warned(String),
    Failure(String),
    /// The probe itself could not be done: nothing is known.
    Unknown(String),
}

/// What the results of a probe add up to, for one run of a container.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub kind: Kind,
    pub due: Timestamp,
    pub in_flight: bool,
    /// Startup and readiness begin false, liveness true.
    pub passed: bool,
    /// How often in a row the newest result came.
    streak: u32,
    newest: bool,
}

/// Whether the threshold of success or failure was just reached (again).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Undecided,
    Passed,
    Failed,
}

impl Probe {
    pub fn new(kind: Kind, spec: &api::Probe, started_at: Timestamp) -> Self {
        let delay =
            SignedDuration::from_secs(spec.initial_delay_seconds.unwrap_or(0).max(0).into());
        let due = started_at.saturating_add(delay).unwrap_or(started_at);
        Self {
            kind,
            due,
            in_flight: false,
            passed: kind == Kind::Liveness,
            streak: 0,
            newest: false,
        }
    }

    pub fn result(&mut self, spec: &api::Probe, outcome: &Outcome, now: Timestamp) -> Verdict {
        self.in_flight = false;
        self.due = now.saturating_add(period(spec)).unwrap_or(now);
        let good = match outcome {
            Outcome::Unknown(_) => return Verdict::Undecided,
            Outcome::Success | Outcome::Warned(_) => true,
            Outcome::Failure(_) => false,
        };
        self.streak =
            if self.streak > 0 && self.newest == good { self.streak.saturating_add(1) } else { 1 };
        self.newest = good;
        let threshold = if good { spec.success_threshold } else { spec.failure_threshold };
        let threshold = threshold.unwrap_or(if good { 1 } else { 3 }).max(1) as u32;
        if self.streak < threshold {
            return Verdict::Undecided;
        }
        self.passed = good;
        if good { Verdict::Passed } else { Verdict::Failed }
    }
}

pub(crate) fn period(spec: &api::Probe) -> SignedDuration {
    SignedDuration::from_secs(spec.period_seconds.filter(|s| *s > 0).unwrap_or(10).into())
}

fn timeout(spec: &api::Probe) -> Duration {
    Duration::from_secs(spec.timeout_seconds.filter(|s| *s > 0).unwrap_or(1) as u64)
}

/// What a probe or hook is aimed at.
pub(crate) struct Target<'a> {
    pub network: &'a dyn Network,
    pub runtime: &'a dyn Runtime,
    pub id: &'a RunId,
    pub pod_ip: IpAddr,
    pub container: &'a api::Container,
}

impl Target<'_> {
    /// Host as shown, and the address that this node connects to.
    pub fn address(
        &self,
        host: Option<&str>,
        port: &IntOrString,
    ) -> Result<(String, SocketAddr), String> {
        let port = self.port(port)?;
        match host.filter(|h| !h.is_empty()) {
            None => {
                let shown = SocketAddr::new(self.pod_ip, port).to_string();
                Ok((shown, self.network.reach_port(self.pod_ip, port)))
            }
            Some(host) => {
                let ip: IpAddr =
                    host.parse().map_err(|_| format!("host {host:?} is not an IP address"))?;
                Ok((SocketAddr::new(ip, port).to_string(), SocketAddr::new(ip, port)))
            }
        }
    }

    fn port(&self, port: &IntOrString) -> Result<u16, String> {
        let number = match port {
            IntOrString::Int(n) => Some(*n),
            IntOrString::String(text) => text.parse().ok().or_else(|| {
                let ports = self.container.ports.iter().flatten();
                ports.into_iter().find(|p| p.name.as_ref() == Some(text)).map(|p| p.container_port)
            }),
        };
        let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0);
        number.ok_or_else(|| match port {
            IntOrString::Int(n) => format!("invalid port number: {n}"),
            IntOrString::String(s) => format!("couldn't find port: {s:?}"),
        })
    }
}

/// Executes a probe once.
pub(crate) async fn execute(spec: &api::Probe, target: &Target<'_>) -> Outcome {
    let limit = timeout(spec);
    if let Some(get) = &spec.http_get {
        let (url, response) = match http::prepare(get, target) {
            Ok(request) => (request.url(), tokio::time::timeout(limit, http::get(request)).await),
            Err(why) => return Outcome::Unknown(why),
        };
        return match response {
            Ok(Ok(answer)) => match answer.status {
                200..300 => Outcome::Success,
                300..400 => Outcome::Warned(format!(
                    "Probe terminated redirects, Response body: {}",
                    answer.body
                )),
                status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
            },
            Ok(Err(why)) => Outcome::Failure(format!("Get {url:?}: {why}")),
            Err(_) => Outcome::Failure(format!(
                "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        };
    }
    if let Some(tcp) = &spec.tcp_socket {
        let (shown, address) = match target.address(tcp.host.as_deref(), &tcp.port) {
            Ok(address) => address,
            Err(why) => return Outcome::Unknown(why),
        };
        return match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(error)) => Outcome::Failure(dial_text(&shown, &error)),
            Err(_) => Outcome::Failure(format!("dial tcp {shown}: i/o timeout")),
        };
    }
    if let Some(grpc) = &spec.grpc {
        let (shown, address) = match target.address(None, &IntOrString::Int(grpc.port)) {
            Ok(address) => address,
            Err(why) => return Outcome::Unknown(why),
        };
        let service = grpc.service.as_deref().unwrap_or_default();
        return match tokio::time::timeout(limit, grpc::check(address, &shown, service)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failure(format!(
                "timeout: failed to connect service {shown:?} within {}: context deadline exceeded",
                crate::restart::go_millis(limit)
            )),
        };
    }
    if let Some(exec) = &spec.exec {
        let argv = exec.command.clone().unwrap_or_default();
        let shown = argv.join(" ");
        let run = command::run(target.runtime, target.id, argv);
        return match tokio::time::timeout(limit, run).await {
            Ok(Ok((exit, _))) if exit.code == 0 => Outcome::Success,
            Ok(Ok((_, printed))) if !printed.is_empty() => Outcome::Failure(printed),
            Ok(Ok((exit, _))) if !exit.message.is_empty() => Outcome::Failure(exit.message),
            Ok(Ok((exit, _))) => {
                Outcome::Failure(format!("command {shown:?} ended with exit code {}", exit.code))
            }
            Ok(Err(error)) => Outcome::Unknown(error.to_string()),
            Err(_) => Outcome::Failure(format!(
                "command timed out: {shown:?} timed out after {}",
                crate::restart::go_millis(limit)
            )),
        };
    }
    Outcome::Unknown("missing probe handler".into())
}

/// A failed connection in the words that users know from the kubelet.
pub(crate) fn dial_text(shown: &str, error: &std::io::Error) -> String {
    format!("dial tcp {shown}: {}", connect_text(error))
}

/// Why a connection was not made, in those words.
pub fn connect_text(error: &std::io::Error) -> String {
    use std::io::ErrorKind as E;
    let why = match error.kind() {
        E::ConnectionRefused => "connect: connection refused",
        E::ConnectionReset => "connect: connection reset by peer",
        E::TimedOut => "i/o timeout",
        E::HostUnreachable => "connect: no route to host",
        E::NetworkUnreachable => "connect: network is unreachable",
        _ => return error.to_string(),
    };
    why.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        /// `+` success, `-` failure, `?` unknown; answers what each decided: `P`, `F` or `.`.
        #[track_caller]
        fn check(
            kind: Kind,
            success: i32,
            failure: i32,
            results: &str,
            verdicts: &str,
            passed: bool,
        ) {
            let spec = api::Probe {
                success_threshold: Some(success),
                failure_threshold: Some(failure),
                ..Default::default()
            };
            let now = Timestamp::from_second(1_800_000_000).unwrap();
            let mut probe = Probe::new(kind, &spec, now);
            let seen: String = results
                .chars()
                .map(|c| {
                    let outcome = match c {
                        '+' => Outcome::Success,
                        '-' => Outcome::Failure("no".into()),
                        _ => Outcome::Unknown("?".into()),
                    };
                    match probe.result(&spec, &outcome, now) {
                        Verdict::Undecided => '.',
                        Verdict::Passed => 'P',
                        Verdict::Failed => 'F',
                    }
                })
                .collect();
            assert_eq!((seen.as_str(), probe.passed), (verdicts, passed));
        }
        check(Kind::Readiness, 1, 3, "+", "P", true);
        check(Kind::Readiness, 2, 3, "++", ".P", true);
        check(Kind::Readiness, 1, 3, "", "", false);
        check(Kind::Readiness, 1, 3, "+--", "P..", true);
        check(Kind::Readiness, 1, 3, "+---", "P..F", false);
        check(Kind::Readiness, 1, 3, "+--+--", "P..P..", true);
        check(Kind::Liveness, 1, 1, "", "", true);
        check(Kind::Liveness, 1, 1, "-", "F", false);
        check(Kind::Liveness, 1, 2, "-?-", "..F", false);
        check(Kind::Startup, 1, 3, "--+", "..P", true);
    }
}
