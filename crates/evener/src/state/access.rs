//! Access rules that the operator adds at run time.

use crate::table::{seconds, table};
use evener_core::acl::Prefix;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An access rule that the operator added at run time.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct RuleView {
    service: String,
    prefix: String,
    /// `permit` or `deny`.
    action: String,
    /// Seconds until the rule expires; absent for a permanent rule.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    left_s: Option<u64>,
}

impl RuleView {
    /// Describes a rule. `left` is the time until the rule expires.
    pub(crate) fn new(service: &str, prefix: Prefix, action: &str, left: Option<Duration>) -> Self {
        Self {
            service: service.into(),
            prefix: prefix.to_string(),
            action: action.into(),
            left_s: left.map(|left| left.as_secs()),
        }
    }

    /// Formats rules as a table.
    pub(crate) fn text(rules: &[Self]) -> String {
        let rows: Vec<_> = rules.iter().map(Self::row).collect();
        table(&["SERVICE", "ACTION", "PREFIX", "LEFT"], &rows)
    }

    fn row(&self) -> Vec<String> {
        let left = self.left_s.map_or_else(|| "until forgotten".into(), seconds);
        vec![self.service.clone(), self.action.clone(), self.prefix.clone(), left]
    }
}
