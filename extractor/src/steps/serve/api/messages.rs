//! The messages of a chat, with pictures and sounds that the request holds itself.

use std::path::PathBuf;

use segpack_runtime_min::processing::Chat;
use segpack_runtime_min::processing::text::chat_template::TemplateValue;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::fields::shown;

const MESSAGES: &str = "messages";

/// Messages alone, with the order of keys that the body has, which templates can show.
#[derive(Deserialize)]
struct InOrder {
    messages: TemplateValue,
}

/// The chat of a request.
///
/// # Errors
/// Where messages are no list of objects with a `role`, or a part of one is neither text nor media
/// that the request holds itself.
pub(super) fn chat(body: &[u8], messages: Option<Value>) -> Result<Chat, ApiError> {
    let wrong = |message: String| ApiError::param(MESSAGES, message);
    let messages = messages.ok_or_else(|| wrong("messages are missing".to_owned()))?;
    let Value::Array(mut list) = messages else {
        return Err(wrong(format!(
            "messages are {}; wanted a list",
            shown(&messages)
        )));
    };
    if list.is_empty() {
        return Err(wrong("messages are an empty list".to_owned()));
    }
    let mut is_rewritten = false;
    for (number, message) in list.iter_mut().enumerate() {
        is_rewritten |= rewrite(number, message)?;
    }
    let messages = if is_rewritten {
        TemplateValue::of(&list)
    } else {
        let in_order: Result<InOrder, _> = serde_json::from_slice(body);
        in_order.map_err(|e| wrong(e.to_string()))?.messages
    };
    Ok(Chat {
        messages,
        tools: None,
        folder: PathBuf::new(),
        fetch: None,
    })
}

/// Makes the parts of a message those that templates know. Whether there were any.
fn rewrite(number: usize, message: &mut Value) -> Result<bool, ApiError> {
    let at = |message: String| ApiError::param(format!("{MESSAGES}[{number}]"), message);
    if message.get("role").and_then(Value::as_str).is_none() {
        return Err(at(format!("message {number} has no role that is a text")));
    }
    match message.get_mut("content") {
        None | Some(Value::Null | Value::String(_)) => Ok(false),
        Some(Value::Array(parts)) => {
            for (place, part) in parts.iter_mut().enumerate() {
                *part = known_part(part).map_err(|problem| {
                    let param = format!("{MESSAGES}[{number}].content[{place}]");
                    ApiError::param(param, format!("part {place} of message {number} {problem}"))
                })?;
            }
            Ok(true)
        }
        Some(other) => Err(at(format!(
            "the content of message {number} is {}; wanted a text or a list of parts",
            shown(other)
        ))),
    }
}

/// A part in the words of the chat templates; the reason why it is none.
fn known_part(part: &Value) -> Result<Value, String> {
    if let Value::String(text) = part {
        return Ok(json!({"type": "text", "text": text}));
    }
    let part = part.as_object().ok_or("is no object")?;
    let kind = part.get("type").and_then(Value::as_str);
    match kind.ok_or("has no type that is a text")? {
        "text" => {
            only(part, &["type", "text"])?;
            let text = part.get("text").and_then(Value::as_str);
            Ok(json!({"type": "text", "text": text.ok_or("has no text")?}))
        }
        "image_url" => of_address(part, "image_url", "image"),
        "audio_url" => of_address(part, "audio_url", "audio"),
        "video_url" => of_address(part, "video_url", "video"),
        "input_audio" => of_sound(part),
        other => Err(format!(
            "is of type {other:?}; wanted text, image_url, input_audio, audio_url or video_url"
        )),
    }
}

/// `{"type": KEY, KEY: {"url": "data:…"}}`.
fn of_address(part: &Map<String, Value>, key: &str, kind: &str) -> Result<Value, String> {
    only(part, &["type", key])?;
    let value = part.get(key).ok_or_else(|| format!("has no {key}"))?;
    if let Some(object) = value.as_object() {
        only(object, &["url", "detail"])?;
        let detail = object.get("detail").filter(|detail| !detail.is_null());
        if detail.is_some_and(|detail| detail != "auto") {
            return Err("has a detail other than \"auto\", which is not supported".to_owned());
        }
    }
    let address = value.as_str().or_else(|| value.get("url")?.as_str());
    let address = address.ok_or_else(|| format!("has no address in {key}.url"))?;
    Ok(json!({"type": kind, kind: data_address(address)?}))
}

/// `{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}`.
fn of_sound(part: &Map<String, Value>) -> Result<Value, String> {
    only(part, &["type", "input_audio"])?;
    let sound = part.get("input_audio").and_then(Value::as_object);
    let sound = sound.ok_or("has no object input_audio")?;
    only(sound, &["data", "format"])?;
    let text = |key: &str| sound.get(key).and_then(Value::as_str);
    let data = text("data").ok_or("has no input_audio.data")?;
    let format = text("format").ok_or("has no input_audio.format")?;
    if format.is_empty() || !format.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err("has an input_audio.format that is no word".to_owned());
    }
    // some clients send a whole address
    let address = match data.starts_with("data:") {
        true => data.to_owned(),
        false => format!("data:audio/{format};base64,{data}"),
    };
    Ok(json!({"type": "audio", "audio": address}))
}

/// Nothing is fetched, and no file of this machine is read.
fn data_address(address: &str) -> Result<&str, String> {
    let scheme = address.get(..5).unwrap_or_default();
    match scheme.eq_ignore_ascii_case("data:") {
        true => Ok(address),
        false => Err("is not a data: address; nothing is fetched or read from files".to_owned()),
    }
}

/// Other keys could ask for something that is not done.
fn only(object: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    let mut keys = object.iter().filter(|(_, value)| !value.is_null());
    match keys.find(|(key, _)| !known.contains(&key.as_str())) {
        Some((key, _)) => Err(format!("has the key {key:?}, which is not known")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_are_taken_from_the_request_alone() {
        let part = |part: Value| known_part(&part);
        let image = "data:image/png;base64,AAAA";
        assert_eq!(
            part(json!({"type": "image_url", "image_url": {"url": image, "detail": "auto"}})),
            Ok(json!({"type": "image", "image": image}))
        );
        assert_eq!(
            part(json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
            Ok(json!({"type": "audio", "audio": "data:audio/wav;base64,AAAA"}))
        );
        for address in [
            "/etc/passwd",
            "file:///etc/passwd",
            "https://a/b.png",
            "a.png",
            "dat",
            "é",
        ] {
            let refused = part(json!({"type": "image_url", "image_url": {"url": address}}));
            assert!(
                refused.unwrap_err().contains("not a data: address"),
                "{address}"
            );
        }
        for hidden in [
            json!({"type": "text", "text": "a", "image": "/etc/passwd"}),
            json!({"type": "image", "image": "/etc/passwd"}),
            json!({"image": "/etc/passwd"}),
            json!({"type": "image_url", "image_url": image, "path": "/etc/passwd"}),
            json!({"type": "image_url", "image_url": {"url": image, "detail": "low"}}),
            json!({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "/../x"}}),
        ] {
            assert!(part(hidden.clone()).is_err(), "{hidden}");
        }
    }
}
