//! The hold table and the checkpoint: there, and open to the daemon. And the outbox, where settled rows are deleted.

use crate::control::ident;
use crate::preflight::facts::Facts;
use crate::preflight::{Class, Expectation, Finding};

pub(super) fn judge(facts: &Facts, expected: &Expectation) -> Vec<Finding> {
    let holding = &facts.holding;
    let fatal = |what| Finding::fatal(Class::Configuration, what);
    let mut findings = Vec::new();
    if !holding.missing.is_empty() {
        findings.push(
            fatal(format!(
                "database {:?} lacks {}: tasks cannot be held",
                facts.database,
                holding.missing.join(", ")
            ))
            .remedy("make what is missing: aftercommit init"),
        );
    }
    let role = ident(&holding.role);
    for (lacking, what_for) in [
        (&holding.lacking, "hold tasks"),
        (&holding.lacking_on_outbox, "delete settled rows"),
    ] {
        // Who may not delete rows may not drop partitions either.
        let is_needed = what_for == "hold tasks" || expected.deletes || expected.partitions;
        if lacking.is_empty() || !is_needed {
            continue;
        }
        let mut finding = fatal(format!(
            "role {role} may not {what_for}: it lacks {}",
            lacking.join(", ")
        ))
        .remedy("run init again as an administrator (--url), or as the owner:");
        for right in lacking {
            finding = finding.sql(format!("grant {right} to {role}"));
        }
        findings.push(finding);
    }
    findings
}
