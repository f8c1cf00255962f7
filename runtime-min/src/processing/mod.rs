//! From what a person gives to what a model takes, and back.
//!
//! * [`text`]: tokenizer and chat template.

pub mod text;
