//! Text: the checkpoint's own tokenizer and chat template.

pub mod chat_template;
pub mod tokenizer;
