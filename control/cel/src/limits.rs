//! What an expression may cost. Costs are Kubernetes' units: about one for each step of evaluation and
//! for each ten characters looked at, so that a million is roughly a tenth of a second.
//! <https://kubernetes.io/docs/reference/using-api/cel/#resource-constraints>

use std::time::{Duration, Instant};

use crate::error::EvalError;

/// Of one evaluation of one expression.
pub const PER_CALL: u64 = 1_000_000;
/// Of all expressions of one policy's binding, or of one custom resource.
pub const PER_REQUEST: u64 = 10_000_000;
/// Of all match conditions of one policy or webhook.
pub const PER_MATCH_CONDITIONS: u64 = 2_500_000;
/// Of one expression in a CustomResourceDefinition, as estimated when it is written.
pub const ESTIMATE_PER_EXPRESSION: u64 = 10_000_000;
/// Of all expressions of one CustomResourceDefinition.
pub const ESTIMATE_PER_DEFINITION: u64 = 100_000_000;
/// Characters of an expression.
pub const EXPRESSION_CHARS_MAX: usize = 100_000;
/// Nesting of an expression, brackets and operators alike.
pub const DEPTH_MAX: u16 = 250;
/// Bytes of a text that a messageExpression gives.
pub const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Bytes that one string, made by an expression, may have.
pub const STRING_BYTES_MAX: usize = 4 << 20;
/// How long one evaluation may take. The cost runs out long before; this holds when our prices are wrong.
pub const EVALUATION_TIME_MAX: Duration = Duration::from_secs(2);

/// How many charges pass between two looks at the clock.
const CLOCK_EVERY: u32 = 256;

/// What is left to spend.
#[derive(Clone, Debug)]
pub struct Budget {
    left: u64,
    deadline: Option<Instant>,
    charges: u32,
}

impl Budget {
    pub fn new(cost: u64) -> Self {
        Self { left: cost, deadline: None, charges: 0 }
    }

    pub fn left(&self) -> u64 {
        self.left
    }

    /// The part of this budget that one expression may use.
    pub(crate) fn for_call(&self) -> Self {
        let deadline = Some(Instant::now() + EVALUATION_TIME_MAX);
        Self { left: self.left.min(PER_CALL), deadline, charges: 0 }
    }

    /// Another budget under the same deadline.
    pub(crate) fn beside(&self, cost: u64) -> Self {
        Self { left: cost, deadline: self.deadline, charges: 0 }
    }

    /// Sets what is left after a call.
    pub(crate) fn leave(&mut self, left: u64) {
        self.left = left;
    }

    pub(crate) fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        match self.left.checked_sub(cost) {
            Some(left) => self.left = left,
            None => {
                self.left = 0;
                return Err(EvalError::CostLimit);
            }
        }
        self.charges = self.charges.wrapping_add(1);
        if self.charges.is_multiple_of(CLOCK_EVERY)
            && self.deadline.is_some_and(|d| Instant::now() > d)
        {
            return Err(EvalError::Deadline);
        }
        Ok(())
    }

    /// The price of looking at that many bytes or elements.
    pub(crate) fn traverse(&mut self, size: usize) -> Result<(), EvalError> {
        self.charge(tenth(size))
    }
}

/// A tenth, rounded up.
pub(crate) fn tenth(size: usize) -> u64 {
    (size as u64).div_ceil(10)
}
