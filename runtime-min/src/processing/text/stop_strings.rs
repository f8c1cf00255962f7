//! Strings that end a text.

use std::cmp::Reverse;

/// A stop string that every text would begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stop string {number} is empty: it would end every text at once")]
pub struct EmptyStopString {
    /// Its number, from 0.
    pub number: usize,
}

/// Ends a text that comes in pieces where the first of some strings is complete. How the text is cut
/// into pieces makes no difference.
///
/// ```
/// use segpack_runtime_min::processing::text::StopStrings;
///
/// let mut stop = StopStrings::new(["\n\n", "User:"])?;
/// assert_eq!(stop.push("Hi.\n").text, "Hi."); // a line break may be the first of two
/// assert_eq!(stop.push("Us").text, "\n");
/// let last = stop.push("er: and more");
/// assert_eq!((last.text.as_str(), last.stopped_by), ("", Some(1)));
/// # Ok::<_, segpack_runtime_min::processing::text::EmptyStopString>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    /// The end of the text, which may begin one of them.
    held: String,
}

/// What a piece of text completes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleasedText {
    /// Text that is certain now, without the stop string and what follows it.
    pub text: String,
    /// The number of the string that ends the text, from 0.
    pub stopped_by: Option<usize>,
}

impl StopStrings {
    /// Without any string all text is released at once.
    ///
    /// # Errors
    /// Where one of them is empty.
    pub fn new<S: Into<String>>(
        strings: impl IntoIterator<Item = S>,
    ) -> Result<Self, EmptyStopString> {
        let strings: Vec<String> = strings.into_iter().map(Into::into).collect();
        match strings.iter().position(String::is_empty) {
            Some(number) => Err(EmptyStopString { number }),
            None => Ok(Self {
                strings,
                held: String::new(),
            }),
        }
    }

    /// The strings.
    pub fn strings(&self) -> &[String] {
        &self.strings
    }

    /// Takes the next piece. After one that ends the text there is nothing more to give.
    pub fn push(&mut self, piece: &str) -> ReleasedText {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        if let Some((number, start)) = self.find(&text) {
            text.truncate(start);
            return ReleasedText {
                text,
                stopped_by: Some(number),
            };
        }
        self.held = text.split_off(self.certain(&text));
        ReleasedText {
            text,
            stopped_by: None,
        }
    }

    /// The end of the text, which came to no stop string after all.
    #[must_use]
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The string that is complete first, and where it begins; the longest of several that end at
    /// the same place.
    fn find(&self, text: &str) -> Option<(usize, usize)> {
        let found = self.strings.iter().enumerate();
        let found = found.filter_map(|(number, string)| {
            let start = text.find(string.as_str())?;
            Some((start + string.len(), Reverse(string.len()), number, start))
        });
        let (_, _, number, start) = found.min()?;
        Some((number, start))
    }

    /// Bytes of the text before the longest end that one of the strings begins with.
    fn certain(&self, text: &str) -> usize {
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let may_begin = |end: &str| self.strings.iter().any(|string| string.starts_with(end));
        let first = text.len().saturating_sub(longest);
        (first..text.len())
            .find(|&at| text.is_char_boundary(at) && may_begin(&text[at..]))
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is released of a text in such pieces, and what ends it.
    fn released<'t>(
        strings: &[&str],
        pieces: impl IntoIterator<Item = &'t str>,
    ) -> (String, Option<usize>) {
        let mut stop = StopStrings::new(strings.iter().copied()).unwrap();
        let mut all = String::new();
        for piece in pieces {
            let released = stop.push(piece);
            all += &released.text;
            if released.stopped_by.is_some() {
                return (all, released.stopped_by);
            }
        }
        (all + &stop.finish(), None)
    }

    #[test]
    fn the_first_string_that_is_complete_ends_a_text_however_it_is_cut() {
        let cases: [(&[&str], &str, &str, Option<usize>); 9] = [
            (&["b"], "abc", "a", Some(0)),
            (&["abc", "b"], "xabc", "xa", Some(1)),
            (&["bc", "abc"], "xabcd", "x", Some(1)),
            (&["aab"], "aaaab", "aa", Some(0)),
            (&["aab"], "aaa", "aaa", None),
            (&["\n\n"], "a\nb\n", "a\nb\n", None),
            (&["éa", "e"], "xéé", "xéé", None),
            (&["éa"], "xééa", "xé", Some(0)),
            (&[], "abc", "abc", None),
        ];
        for (strings, text, wanted, by) in cases {
            let wanted = (wanted.to_owned(), by);
            assert_eq!(released(strings, [text]), wanted, "{text:?} whole");
            let characters = text
                .char_indices()
                .map(|(at, c)| &text[at..at + c.len_utf8()]);
            assert_eq!(
                released(strings, characters),
                wanted,
                "{text:?} in characters"
            );
            for cut in (0..text.len()).filter(|&at| text.is_char_boundary(at)) {
                let (left, right) = text.split_at(cut);
                assert_eq!(
                    released(strings, [left, right]),
                    wanted,
                    "{text:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn only_what_may_begin_a_string_is_held_back() {
        let mut stop = StopStrings::new(["STOP"]).unwrap();
        assert_eq!(stop.push("say STO").text, "say ");
        assert_eq!(stop.push("RE").text, "STORE");
        assert_eq!(stop.push("S").text, "");
        assert_eq!(stop.finish(), "S");
    }

    #[test]
    fn an_empty_string_is_refused() {
        let error = StopStrings::new(["a", ""]).unwrap_err();
        assert_eq!(error, EmptyStopString { number: 1 });
    }
}
