//! The model card of a pack: the front matter of the checkpoint's `README.md`.

use segpack_formats::FormatError;
use segpack_manifests::documents::{ModelCard, SourceFile, SourceFileKind};
use segpack_manifests::{Pack, folder};

use crate::steps::StepError;

/// The file that has it.
const CARD: &str = "README.md";

/// What the model card says; the default where the checkpoint has none, or none with a front matter.
///
/// # Errors
/// `Malformed` where the front matter is no YAML, or a key of it is not what it has to be; `Io`.
pub(crate) fn model_card(pack: &Pack) -> Result<ModelCard, StepError> {
    let files = &pack.manifest().source_files;
    let is_card = |f: &&SourceFile| f.kind == SourceFileKind::File && f.path == CARD;
    let Some(file) = files.iter().find(is_card) else {
        return Ok(ModelCard::default());
    };
    let bytes = folder::stored_file(pack, file)?;
    let text = String::from_utf8_lossy(&bytes);
    let Some(yaml) = front_matter(&text) else {
        return Ok(ModelCard::default());
    };
    serde_saphyr::from_str(yaml).map_err(|e| {
        let path = pack.path(&file.stored_as);
        FormatError::malformed(
            &path,
            format!("has a front matter that cannot be read: {e}"),
        )
        .into()
    })
}

/// What stands between a first line `---` and the next one.
fn front_matter(text: &str) -> Option<&str> {
    let body = text.trim_start_matches('\u{feff}').strip_prefix("---")?;
    let body = body.strip_prefix('\r').unwrap_or(body).strip_prefix('\n')?;
    let mut end = 0;
    for line in body.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return body.get(..end);
        }
        end += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_matter_is_between_two_lines_of_dashes() {
        assert_eq!(front_matter("---\na: 1\n---\n# Title"), Some("a: 1\n"));
        assert_eq!(front_matter("---\r\na: 1\r\n---\r\n"), Some("a: 1\r\n"));
        assert_eq!(front_matter("---\n---"), Some(""));
        for text in ["", "# Title", "---", "---\na: 1", "--- a\n---", " ---\n---"] {
            assert_eq!(front_matter(text), None, "{text:?}");
        }
    }

    #[test]
    fn licences_and_base_models_are_words_or_lists() {
        let card: ModelCard = serde_saphyr::from_str(
            "license: other\nlicense_name: qwen\nlanguage:\n- en\nbase_model: [a/b, c/d]\n",
        )
        .unwrap();
        assert_eq!(card.license.all(), ["other"]);
        assert_eq!(card.license_name.as_deref(), Some("qwen"));
        assert_eq!(card.base_model.all(), ["a/b", "c/d"]);
    }
}
