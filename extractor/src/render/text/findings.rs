use segpack_manifests::documents::{Finding, Severity};

use super::page::Page;

/// How many warnings are listed one by one; errors are all listed.
const MAX_WARNINGS: usize = 20;

/// Findings, one per line: all errors, and the first warnings.
pub(crate) fn findings(findings: &[Finding]) -> String {
    let (errors, warnings): (Vec<_>, Vec<_>) =
        findings.iter().partition(|f| f.severity == Severity::Error);
    let mut page = Page::default();
    for finding in errors {
        page.line(format_args!("  {finding}"));
    }
    for finding in warnings.iter().take(MAX_WARNINGS) {
        page.line(format_args!("  warning: {finding}"));
    }
    if warnings.len() > MAX_WARNINGS {
        let more = warnings.len() - MAX_WARNINGS;
        page.line(format_args!(
            "  and {more} more warnings (--json lists all)"
        ));
    }
    page.into_text()
}
