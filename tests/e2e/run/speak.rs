//! `speak` and `run --speak`: the official codes and the official sound, into files and pipes.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use crate::support::checkpoint::fixtures;
use crate::support::cli::{Run, packed, run};
use crate::support::folders::temp;
use crate::support::tiny::{tiny_full, tiny_text};

/// Signal to noise that the sound has to reach, in decibels.
const SNR: f64 = 92.0;

/// Spoken answers of `tiny-speech`; its texts have ten tokens, and the talker chose fourteen codes.
const TRACE: &str = "traces/tiny-speech.speech.float32.safetensors";

fn tiny_speech(folder: &Path) -> PathBuf {
    packed(&fixtures().join("tiny-speech"), folder)
}

fn bytes_of(trace: &[u8], name: &str) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(trace).unwrap();
    tensors.tensor(name).unwrap().data().to_vec()
}

/// Token ids as an option takes them.
fn ids(trace: &[u8], name: &str) -> String {
    let bytes = bytes_of(trace, name);
    let ids = bytes.as_chunks::<8>().0.iter();
    let ids: Vec<String> = ids.map(|b| i64::from_le_bytes(*b).to_string()).collect();
    ids.join(",")
}

fn segpack(arguments: &[&str], paths: &[(&str, &Path)]) -> Run {
    let mut all: Vec<OsString> = arguments.iter().map(Into::into).collect();
    for (option, path) in paths {
        all.extend(option.split_whitespace().map(Into::into));
        all.push(path.into());
    }
    run(&all)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|b| f32::from_le_bytes(*b)).collect()
}

/// 10 log10 of the power of the reference by that of the difference.
fn snr(wave: &[f32], reference: &[f32]) -> f64 {
    let squares = reference.iter().map(|r| f64::from(*r).powi(2));
    let pairs = wave.iter().zip(reference);
    let noise = pairs.map(|(x, r)| (f64::from(*x) - f64::from(*r)).powi(2));
    10.0 * (squares.sum::<f64>() / noise.sum::<f64>()).log10()
}

#[test]
fn a_given_text_is_spoken_as_officially() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let trace = fs::read(fixtures().join(TRACE)).unwrap();
    for (case, speaker) in [("s00", "Ethan"), ("s01", "chelsie"), ("s02", "AIDEN")] {
        let prompt = ids(&trace, &format!("{case}.input_ids"));
        let text = ids(&trace, &format!("{case}.text_ids"));
        let (sound, codes) = (folder.path().join("a.wav"), folder.path().join("a.npy"));
        let greedy = ["--speak-greedy", "--speak-max-frames", "13", "--speaker"];
        let spoken = ["speak", "--prompt-ids", &prompt, "--text-ids", &text];
        let all = [&spoken[..], &greedy, &[speaker, "--json"]].concat();
        let float = ("--wav-format float32 -o", &*sound);
        let files = [("", &*pack), float, ("--codes", &*codes)];
        let summary = segpack(&all, &files).exits(0).json();
        assert_eq!(summary["speaker"], speaker.to_lowercase());

        let official = bytes_of(&trace, &format!("{case}.codes"));
        assert!(fs::read(&codes).unwrap().ends_with(&official), "{case}");
        let official = floats(&bytes_of(&trace, &format!("{case}.wave")));
        assert_eq!(summary["samples"], official.len());
        let bytes = fs::read(&sound).unwrap();
        let wave = floats(&bytes[bytes.len() - official.len() * 4..]);
        let snr = snr(&wave, &official);
        assert!(snr >= SNR, "{case}: {snr} dB");
    }
}

#[test]
fn an_answer_is_spoken_after_its_text_and_goes_down_a_pipe() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let trace = fs::read(fixtures().join(TRACE)).unwrap();
    let prompt = ids(&trace, "s00.input_ids");
    let text = ids(&trace, "s00.text_ids");
    let greedy = ["--speak-greedy", "--speak-max-frames", "13"];
    let file = folder.path().join("a.wav");
    let answer = ["run", "--prompt-ids", &prompt, "--max-new-tokens", "10"];
    let answer = [&answer[..], &greedy].concat();
    segpack(&answer, &[("", &*pack), ("--speak", &file)]).exits(0);
    let file = fs::read(file).unwrap();

    // the same words given, and the same sound down a pipe, whose header is the same
    let given = [
        "speak",
        "--prompt-ids",
        &prompt,
        "--text-ids",
        &text,
        "-o",
        "-",
    ];
    let given = [&given[..], &greedy].concat();
    assert!(segpack(&given, &[("", &*pack)]).exits(0).stdout == file);
    let piped = [&answer[..], &["--speak", "-"]].concat();
    assert!(segpack(&piped, &[("", &*pack)]).exits(0).stdout == file);
    let raw = [&piped[..], &["--wav-format", "s16le"]].concat();
    let raw = segpack(&raw, &[("", &*pack)]).exits(0).stdout;
    assert!(file.ends_with(&raw) && raw.len() == 2 * 24_405);
}

#[test]
fn a_text_is_tokenized_and_spoken_the_same_with_the_same_seed() {
    let folder = temp();
    let pack = packed(&tiny_full(), folder.path());
    let spoken = [
        "speak",
        "--text",
        "Hi there",
        "-o",
        "-",
        "--speak-max-frames",
        "5",
    ];
    let of_seed = |seed| {
        let all = [&spoken[..], &["--speak-seed", seed]].concat();
        segpack(&all, &[("", &*pack)]).exits(0).stdout
    };
    let first = of_seed("1");
    assert!(first.starts_with(b"RIFF") && first.len() > 44);
    assert!(first == of_seed("1") && first != of_seed("2"));
}

#[test]
fn what_cannot_be_spoken_is_said_before_anything_is_written() {
    let folder = temp();
    let pack = tiny_speech(folder.path());
    let sound = folder.path().join("a.wav");
    let files = [("", &*pack), ("-o", &*sound)];
    let spoken = ["speak", "--prompt-ids", "1,2", "--text-ids", "3"];
    let nobody = [&spoken[..], &["--speaker", "nobody"]].concat();
    let error = segpack(&nobody, &files).exits(2).stderr;
    for name in ["nobody", "aiden", "chelsie", "ethan"] {
        assert!(error.contains(name), "{error}");
    }
    segpack(&spoken, &files).exits(2);
    let alone = ["run", "--prompt", "a", "--speaker", "ethan"];
    segpack(&alone, &[("", &*pack)]).exits(2);

    let mute = folder.path().join("mute");
    fs::create_dir(&mute).unwrap();
    let mute = packed(&tiny_text(), &mute);
    segpack(&spoken, &[("", &*mute), ("-o", &sound)]).exits(3);
    let answer = ["run", "--prompt-ids", "1,2"];
    segpack(&answer, &[("", &*mute), ("--speak", &sound)]).exits(3);
    assert!(!sound.exists());
}
