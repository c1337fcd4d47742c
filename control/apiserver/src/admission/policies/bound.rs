//! Which policies a request is for, and with which bindings and parameters.

use std::sync::Arc;

use rimward_api::Status;
use serde_json::Value;

use super::held::Bound;
use super::policy::{Binding, Policy};
use super::{Configured, params};
use crate::admission::Review;
use crate::served::Served;
use crate::server::Inner;

/// A policy that is to be applied.
pub struct Invocation<'p, B> {
    pub policy: &'p Policy<B>,
    /// None if the policy itself cannot be used.
    pub binding: Option<&'p Binding>,
    /// In which version the policy wants to see the request.
    pub served: Arc<Served>,
    /// What it is applied with, one after the other; or why it cannot be applied.
    pub params: Configured<Vec<Value>>,
}

/// Those of a policy that match the request, in the order of the bindings.
pub async fn of_policy<'p, B>(
    server: &Inner,
    review: &Review<'_>,
    bound: &'p Bound<B>,
) -> Result<Vec<Invocation<'p, B>>, Status> {
    let policy = &*bound.policy;
    let failed = |binding, why: &str| Invocation {
        policy,
        binding,
        served: review.served.clone(),
        params: Err(why.to_owned()),
    };
    let Some(constraints) = &policy.constraints else {
        return Ok(vec![failed(None, "a selector of its matchConstraints does not parse")]);
    };
    let Some(served) = constraints.matched(server, review).await? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for binding in &bound.bindings {
        let within = match &binding.constraints {
            None => true,
            Some(Err(())) => {
                all.push(failed(Some(binding), "a selector of its matchResources does not parse"));
                false
            }
            Some(Ok(narrowed)) => narrowed.matched(server, review).await?.is_some(),
        };
        if !within {
            continue;
        }
        let params = params::collect(server, review, policy.param_kind.as_ref(), binding).await;
        all.push(Invocation { policy, binding: Some(binding), served: served.clone(), params });
    }
    Ok(all)
}
