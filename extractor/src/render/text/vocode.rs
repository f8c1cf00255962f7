use segpack_manifests::documents::VocodeSummary;

use super::numbers::counted;
use super::page::Page;

/// What `vocode` wrote to `place`.
pub(crate) fn vocode(summary: &VocodeSummary, place: &str) -> String {
    let mut page = Page::default();
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimal places")]
    let seconds = summary.samples as f64 / f64::from(summary.sample_rate);
    let (frames, samples) = (
        counted(summary.frames, "frame"),
        counted(summary.samples, "sample"),
    );
    page.line(format_args!(
        "{place}: {seconds:.2} s of sound, {samples} at {} Hz, of {frames} of {}",
        summary.sample_rate,
        counted(summary.groups, "code")
    ));
    if summary.peak.is_none() {
        page.line(format_args!("some samples are not numbers"));
    }
    page.into_text()
}
