//! The audit hook: who asked what, and what came of it.

use std::time::Duration;

use rimward_api::UserInfo;

use crate::request::Attributes;

/// Hears of every request when it was answered (a watch: when it began).
pub trait Audit: Send + Sync + 'static {
    fn answered(&self, event: &Event<'_>);
}

#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Who authenticated, and as whom they act when they impersonate.
    pub user: &'a UserInfo,
    pub acts_as: Option<&'a UserInfo>,
    pub attributes: &'a Attributes,
    pub user_agent: &'a str,
    pub code: u16,
    pub took: Duration,
}
