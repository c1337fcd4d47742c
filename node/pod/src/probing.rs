//! Which probes of a pod are due.

use crate::probe;
use crate::state::{Action, Phase, PodState};
use crate::steps::Plan;

pub(crate) fn plan(state: &mut PodState, plan: &mut Plan) {
    for index in 0..state.containers.len() {
        if !matches!(&state.containers[index].phase, Phase::Running(r) if !r.probes.is_empty()) {
            continue;
        }
        let id = state.run_id(index);
        let ending = state.ending.is_some();
        let c = &mut state.containers[index];
        let runtime = c.runtime.map_or(0, |(index, _)| index);
        let Phase::Running(running) = &mut c.phase else { continue };
        let starting = running.probes.iter().any(|p| p.kind == probe::Kind::Startup && !p.passed);
        let stopping = running.stop_deadline.is_some();
        for probe in &mut running.probes {
            let wanted = match probe.kind {
                probe::Kind::Startup => !probe.passed && !stopping && !ending,
                // A failed one has done its work: the container is on its way out.
                probe::Kind::Liveness => !starting && probe.passed && !stopping && !ending,
                // Goes on while the pod ends, so that it leaves its Services when it says so.
                probe::Kind::Readiness => !starting,
            };
            if !wanted || probe.in_flight || !plan.is_due(probe.due) {
                continue;
            }
            probe.in_flight = true;
            plan.actions.push(Action::Probe { index, id: id.clone(), runtime, kind: probe.kind });
        }
    }
}
