use segpack_manifests::documents::{
    BatchSummary, LayerExperts, RestrictedExperts, RunDrafts, RunPrompt, RunSummary, RunToken,
    ShownRank,
};

use super::numbers::{bytes, counted, grouped, mean_bytes, percent, share};
use super::page::Page;

/// A prompt with media: the text, where the placeholders of each of the media are counted instead of
/// repeated, and a line for each.
pub(crate) fn prompt_with_media(prompt: &RunPrompt, text: &str) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "{}",
        counted_runs(text).trim_end_matches('\n')
    ));
    page.blank();
    for media in &prompt.media {
        let grid = media
            .grid
            .map(|[t, h, w]| format!(", grid {t} × {h} × {w}"));
        let every = media
            .second_per_grid
            .map(|s| format!(", {} s each", short(s)));
        #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
        let sound = media.audio_frames.map(|frames| {
            format!(
                ", {:.2} s of sound ({})",
                frames as f64 / 100.0,
                counted(frames, "frame")
            )
        });
        page.line(format_args!(
            "{} {}: {}{}{}{}",
            media.kind,
            media.name,
            counted(media.tokens, "token"),
            grid.unwrap_or_default(),
            every.unwrap_or_default(),
            sound.unwrap_or_default(),
        ));
    }
    page.line(format_args!(
        "prompt: {}",
        counted(prompt.ids.len() as u64, "token")
    ));
    page.into_text()
}

/// A number without digits that say nothing.
fn short(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A text in which words like `<|audio_pad|>` that are repeated are followed by their number.
fn counted_runs(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("<|") {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find("|>").map_or(rest.len(), |end| end + "|>".len());
        let word = &rest[..end];
        let mut repeats = 0_usize;
        while let Some(after) = rest.strip_prefix(word) {
            rest = after;
            repeats += 1;
        }
        out.push_str(word);
        if repeats > 1 {
            out.push_str(&format!(" × {repeats}"));
        }
    }
    out + rest
}

/// The best candidates for a token, one per line; nothing where none were requested.
pub(crate) fn candidates(token: &RunToken) -> String {
    if token.top.is_empty() {
        return String::new();
    }
    let mut page = Page::default();
    page.blank();
    for c in &token.top {
        let text = format!("{:?}", c.text);
        page.line(format_args!(
            "  {:>6} {text:<16} {:>9.4}  {:.4}",
            c.id, c.logit, c.probability
        ));
    }
    page.into_text()
}

/// Where a continuation ranks at the first token.
pub(crate) fn rank(rank: &ShownRank) -> String {
    let mut page = Page::default();
    let more = match rank.tokens {
        0 | 1 => String::new(),
        n => format!(" (its first token of {n})"),
    };
    page.line(format_args!(
        "rank of {:?}: {}{more}, probability {:.4}, logit {:.4}",
        rank.text, rank.rank, rank.first.probability, rank.first.logit
    ));
    page.into_text()
}

/// How often each expert was used, layer by layer.
pub(crate) fn experts(layers: &[LayerExperts]) -> String {
    let mut page = Page::default();
    for layer in layers {
        let cache = hit_rate(layer.hits, layer.misses);
        page.line(format_args!("  layer {:>3}: {cache}", layer.layer));
        for (expert, uses) in layer.uses.iter().enumerate().filter(|(_, uses)| **uses > 0) {
            page.line(format_args!(
                "    expert {expert:>4}: {}",
                counted(*uses, "use")
            ));
        }
    }
    page.into_text()
}

/// `56.2 % hit rate (27 of 48)`.
fn hit_rate(hits: u64, misses: u64) -> String {
    let uses = hits + misses;
    format!(
        "{} hit rate ({} of {})",
        percent(share(hits, uses)),
        grouped(hits),
        grouped(uses)
    )
}

/// Says that routers were restricted, where they were: what came of it is not the model's.
pub(crate) fn restricted(layers: &RestrictedExperts) -> String {
    if layers.is_empty() {
        return String::new();
    }
    let fewest = layers.values().map(Vec::len).min().unwrap_or(0) as u64;
    let most = layers.values().map(Vec::len).max().unwrap_or(0) as u64;
    let experts = match fewest == most {
        true => counted(most, "expert"),
        false => format!("{} to {}", grouped(fewest), counted(most, "expert")),
    };
    let layers = counted(layers.len() as u64, "layer");
    format!("not the model: the routers of {layers} were restricted to {experts}\n")
}

/// What running many prompts took.
pub(crate) fn batch(s: &BatchSummary) -> String {
    let mut page = Page::default();
    let (prompts, tokens) = (
        counted(s.prompts, "prompt"),
        counted(s.prompt_tokens, "token"),
    );
    let most = counted(s.most_sequences, "sequence");
    page.line(format_args!(
        "{prompts}, {tokens}; forward passes: {}, of up to {most}",
        grouped(s.passes)
    ));
    let generated = counted(s.generated_tokens, "token");
    let rate = per_second(s.generated_tokens, s.seconds);
    page.line(format_args!(
        "generated: {generated} in {:.2} s, {rate:.1} tokens/s",
        s.seconds
    ));
    let (cache, slots) = (
        hit_rate(s.expert_hits, s.expert_misses),
        counted(s.expert_slots, "slot"),
    );
    page.line(format_args!("expert cache: {cache}; {slots}"));
    let dense = if s.dense_resident {
        "resident"
    } else {
        "streamed"
    };
    page.line(format_args!(
        "weights: {} read, {} per generated token; dense weights {dense}",
        bytes(s.bytes_read),
        mean_bytes(s.costs.bytes_read_per_token)
    ));
    if let Some(peak) = s.peak_rss {
        page.line(format_args!("peak memory: {}", bytes(peak)));
    }
    page.into_text()
}

/// Speed, memory and where the time went.
pub(crate) fn figures(s: &RunSummary) -> String {
    let mut page = Page::default();
    page.line(prompt(s));
    page.line(generated(s));
    if let Some(drafts) = &s.drafts {
        page.line(drafted(drafts));
    }
    let (cache, slots) = (
        hit_rate(s.expert_hits, s.expert_misses),
        counted(s.expert_slots, "slot"),
    );
    page.line(format_args!("expert cache: {cache}; {slots}"));
    page.line(weights(s));

    let c = &s.costs;
    let computing = c.forward - c.waiting;
    page.line(format_args!(
        "time: {computing:.2} s computing, {:.2} s waiting for weights",
        c.waiting
    ));
    page.line(format_args!(
        "loader threads: {:.2} s reading, {:.2} s checking, {:.2} s decoding",
        c.reading, c.checking, c.decoding
    ));
    if s.device != "cpu" {
        page.line(format_args!(
            "device: {}, {} copied to it",
            s.device,
            bytes(c.bytes_copied)
        ));
    }
    if let Some(peak) = s.peak_rss {
        page.line(format_args!("peak memory: {}", bytes(peak)));
    }
    page.into_text()
}

fn weights(s: &RunSummary) -> String {
    let mut weights = format!("weights: {} read", bytes(s.bytes_read));
    if after_the_first(s) > 0 {
        let per_token = mean_bytes(s.costs.bytes_read_per_token);
        weights += &format!(", {per_token} per token after the first");
    }
    if s.costs.bytes_direct > 0 {
        weights += &format!(", {} by direct I/O", bytes(s.costs.bytes_direct));
    }
    let dense = if s.dense_resident {
        "resident"
    } else {
        "streamed"
    };
    weights + &format!("; dense weights {dense}")
}

fn prompt(s: &RunSummary) -> String {
    let tokens = counted(s.prompt_tokens, "token");
    if s.ids.is_empty() {
        return format!("prompt: {tokens}");
    }
    let seconds = s.time_to_first_token;
    let rate = per_second(s.prompt_tokens, seconds);
    format!("prompt: {tokens}, first token after {seconds:.2} s ({rate:.1} tokens/s)")
}

fn generated(s: &RunSummary) -> String {
    let (tokens, end) = (counted(s.ids.len() as u64, "token"), s.stop_reason.text());
    let after = after_the_first(s);
    if after == 0 {
        return format!("generated: {tokens} ({end})");
    }
    let rate = per_second(after, s.generation_seconds);
    format!("generated: {tokens} ({end}), {rate:.1} tokens/s after the first")
}

/// `drafts: 83.3 % accepted (20 of 24 tokens, in 6 forward passes)`
fn drafted(drafts: &RunDrafts) -> String {
    let RunDrafts {
        passes,
        drafted,
        accepted,
    } = *drafts;
    let rate = percent(share(accepted, drafted));
    let (accepted, drafted) = (grouped(accepted), counted(drafted, "token"));
    format!(
        "drafts: {rate} accepted ({accepted} of {drafted}, forward passes: {})",
        grouped(passes)
    )
}

fn after_the_first(s: &RunSummary) -> u64 {
    (s.ids.len() as u64).saturating_sub(1)
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn per_second(tokens: u64, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-9)
}
