use segpack_manifests::documents::DemoStep;

use super::page::Page;
use super::validate::tables;

/// One step of the demonstration: the command, its outcome, and the tables of a validation.
pub(crate) fn step(step: &DemoStep) -> String {
    let mut page = Page::default();
    page.line(format_args!("$ {}", step.command));
    page.line(format_args!(
        "  {} {}",
        if step.ok { "ok " } else { "FAILED" },
        step.outcome
    ));
    if let Some(report) = &step.validation {
        page.blank();
        page.append(&tables(report));
    }
    page.into_text()
}
