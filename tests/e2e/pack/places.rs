//! Where `unpack` and `export` may write, and what they leave alone.

use std::fs;
use std::path::Path;

use crate::support::cli::{Run, packed, program, segpack};
use crate::support::damage::flip;
use crate::support::folders::{assert_same, contents, hidden_beside, temp};
use crate::support::tiny::{tiny_text, write_file};

/// Everything that can be told to write a folder, but for its output.
const FOLDERS: [&[&str]; 4] = [
    &["unpack", "PACK"],
    &["export", "PACK", "--to", "hf"],
    &["export", "PACK", "--to", "qwen3-moe"],
    &["export", "PACK", "--to", "npy", "*norm*"],
];

fn write(words: &[&str], pack: &Path, out: &Path, how: &[&str]) -> Run {
    let mut command = program();
    for word in words {
        match *word {
            "PACK" => command.arg(pack),
            word => command.arg(word),
        };
    }
    Run::of(command.arg("-o").arg(out).args(how))
}

#[test]
fn what_is_there_is_replaced_only_where_it_is_ours() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    for words in FOLDERS {
        let (out, whole) = (folder.path().join("out"), folder.path().join("whole"));
        write(words, &pack, &whole, &[]).ok();
        // an earlier output, in which something has changed and something lacks
        write(words, &pack, &out, &[]).ok();
        let names: Vec<String> = contents(&out).into_keys().collect();
        flip(&out.join(&names[0]), -1);
        fs::remove_file(out.join(&names[1])).unwrap();
        let old = contents(&out);
        write(words, &pack, &out, &[])
            .exits(1)
            .says(&["not empty", "--force"]);
        write(words, &pack, &out, &["--resume"]).exits(1).says(&[
            &names[0],
            "is not what the pack holds",
            "--force",
        ]);
        assert!(contents(&out) == old, "{words:?}");
        // with somebody else's file in it, deep down
        write_file(&out.join("notes/thesis.txt"), b"years of work");
        for how in ["--force", "--resume"] {
            write(words, &pack, &out, &[how])
                .exits(1)
                .says(&["thesis.txt", "not replaced"]);
        }
        assert!(!hidden_beside(&out).exists());
        fs::remove_dir_all(out.join("notes")).unwrap();
        assert!(contents(&out) == old, "{words:?}");
        write(words, &pack, &out, &["--force"]).ok();
        assert_same(&out, &whole);
        // only what lacks is written
        fs::remove_file(out.join(&names[1])).unwrap();
        write(words, &pack, &out, &["--resume"]).ok();
        assert_same(&out, &whole);
        assert!(!out.join(".partial").exists() && !hidden_beside(&out).exists());
        fs::remove_dir_all(&out).unwrap();
        fs::remove_dir_all(&whole).unwrap();
    }
}

#[test]
fn a_file_is_replaced_only_where_it_is_ours() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let out = folder.path().join("model.gguf");
    for target in ["safetensors", "gguf"] {
        let words = ["export", "PACK", "--to", target];
        write_file(&out, b"years of work, called by a wrong name");
        for how in [&["--force"][..], &["--resume"], &[]] {
            write(&words, &pack, &out, how)
                .exits(1)
                .says(&["model.gguf"]);
        }
        assert_eq!(
            fs::read(&out).unwrap(),
            b"years of work, called by a wrong name"
        );
        fs::remove_file(&out).unwrap();
        write(&words, &pack, &out, &[]).ok();
        let whole = fs::read(&out).unwrap();
        write(&words, &pack, &out, &[])
            .exits(1)
            .says(&["exists", "--force"]);
        write(&words, &pack, &out, &["--resume"]).ok();
        flip(&out, -1);
        write(&words, &pack, &out, &["--resume"])
            .exits(1)
            .says(&["is not what the pack holds"]);
        write(&words, &pack, &out, &["--force"]).ok();
        assert!(fs::read(&out).unwrap() == whole);
        assert!(!hidden_beside(&out).exists());
        fs::remove_file(&out).unwrap();
    }
    // a folder is no file
    fs::create_dir(&out).unwrap();
    for how in ["--force", "--resume", "--quiet"] {
        write(&["export", "PACK", "--to", "gguf"], &pack, &out, &[how]).exits(1);
    }
    // and neither the pack nor what holds it is an output
    for how in ["--force", "--resume", "--quiet"] {
        for place in [folder.path(), &pack, &pack.join("source")] {
            write(&["unpack", "PACK"], &pack, place, &[how])
                .exits(1)
                .says(&["inside"]);
        }
    }
    segpack!["verify", &pack].ok();
}

#[cfg(unix)]
#[test]
fn an_empty_folder_keeps_its_rights_or_its_place() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    let out = folder.path().join("out");
    for words in FOLDERS {
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, fs::Permissions::from_mode(0o700)).unwrap();
        write(words, &pack, &out, &[]).ok();
        assert_eq!(out.metadata().unwrap().mode() & 0o777, 0o700);
        let whole = contents(&out);
        fs::remove_dir_all(&out).unwrap();

        // the working folder is not exchanged under whoever is in it
        fs::create_dir(&out).unwrap();
        let before = out.metadata().unwrap().ino();
        let mut command = program();
        for word in words {
            match *word {
                "PACK" => command.arg(&pack),
                word => command.arg(word),
            };
        }
        Run::of(command.args(["-o", "."]).current_dir(&out)).ok();
        assert_eq!(out.metadata().unwrap().ino(), before);
        assert!(contents(&out) == whole, "{words:?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn folders_that_were_made_for_nothing_go() {
    let folder = temp();
    let pack = packed(&tiny_text(), folder.path());
    fs::remove_file(pack.join("packs/thinker.text.safetensors")).unwrap();
    let before = contents(folder.path());
    for words in FOLDERS {
        let out = folder.path().join("a/b/c");
        let run = write(words, &pack, &out, &[]);
        assert_eq!(run.status, Some(3), "{run}");
        assert!(contents(folder.path()) == before, "{run}");
    }
}
