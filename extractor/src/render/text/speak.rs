use segpack_manifests::documents::SpeakSummary;

use super::numbers::{bytes, counted};
use super::page::Page;

/// What was spoken to `place`.
pub(crate) fn speak(summary: &SpeakSummary, place: &str) -> String {
    let mut page = Page::default();
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimal places")]
    let seconds = summary.samples as f64 / f64::from(summary.sample_rate.max(1));
    page.line(format_args!(
        "{place}: {seconds:.2} s of {}'s voice, {} of {}",
        summary.speaker,
        counted(summary.frames, "frame"),
        counted(summary.groups, "code")
    ));
    if !summary.is_complete {
        page.line(format_args!(
            "it was cut off: the talker reached the maximum number of codes"
        ));
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal place")]
    let rate = summary.frames as f64 / summary.talker_seconds.max(1e-9);
    page.line(format_args!(
        "{rate:.1} frames/s; {} read of the talker, {} of the code predictor, {} of the thinker's \
         embedding",
        bytes(summary.talker_bytes_read),
        bytes(summary.predictor_bytes_read),
        bytes(summary.embedding_bytes_read)
    ));
    page.into_text()
}
