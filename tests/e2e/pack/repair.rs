//! `repair`: the undamaged pack, byte for byte, from the checkpoint or another pack; or nothing
//! changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::checkpoint::Random;
use crate::support::cli::{Run, segpack};
use crate::support::damage::{edit_manifest, flip, manifest, resize};
use crate::support::folders::{assert_same, contents, copy, temp};
use crate::support::packs::pack_into;
use crate::support::tiny::{Tiny, tiny_full};

/// A checkpoint, its packs by codec, and a folder for damaged copies.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn make() -> Self {
        let folder = temp();
        for codec in ["raw", "zstd", "bf16-rans"] {
            pack_into(
                &tiny_full(),
                &folder.path().join(codec),
                &["--codec", codec],
            );
        }
        Self { folder }
    }

    fn whole(&self, codec: &str) -> PathBuf {
        self.folder.path().join(codec)
    }

    /// A copy to damage.
    fn copy(&self, codec: &str) -> PathBuf {
        let copy_of = self.folder.path().join("copy");
        if copy_of.exists() {
            fs::remove_dir_all(&copy_of).unwrap();
        }
        copy(&self.whole(codec), &copy_of);
        copy_of
    }

    /// Nothing is left beside the pack.
    fn assert_clean(&self) {
        let names = fs::read_dir(self.folder.path()).unwrap();
        let hidden = names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        let hidden: Vec<String> = hidden.filter(|n| n.starts_with('.')).collect();
        assert!(hidden.is_empty(), "{hidden:?}");
    }
}

fn repair(pack: &Path, from: &Path) -> Run {
    segpack!["repair", pack, "--from", from, "--json"]
}

/// Damage that has a name.
type Damage = (&'static str, fn(&Path));

/// Every kind of harm to the files of a pack, the manifest left alone.
const DAMAGES: [Damage; 14] = [
    ("nothing", |_| {}),
    ("a bit of an expert", |p| {
        flip(&p.join("packs/thinker.text.experts.01.safetensors"), -3);
    }),
    ("bits of many segments", |p| {
        for at in [5000, 40_000, -9000, -1] {
            flip(&p.join("packs/thinker.text.safetensors"), at);
        }
    }),
    ("a header", |p| {
        flip(&p.join("packs/code2wav.safetensors"), 20);
    }),
    ("a length field", |p| {
        flip(&p.join("packs/code2wav.safetensors"), 0);
    }),
    ("a cut pack", |p| {
        resize(&p.join("packs/thinker.vision.safetensors"), -4097);
    }),
    ("a longer pack", |p| {
        resize(&p.join("packs/thinker.vision.safetensors"), 4096);
    }),
    ("a missing pack", |p| {
        fs::remove_file(p.join("packs/talker.text.experts.01.safetensors")).unwrap();
    }),
    ("missing packs", |p| {
        fs::remove_dir_all(p.join("packs")).unwrap();
    }),
    ("source/", |p| fs::remove_dir_all(p.join("source")).unwrap()),
    ("a side file", |p| flip(&p.join("source/config.json"), 9)),
    ("a digit of SHA256SUMS", |p| flip(&p.join("SHA256SUMS"), 5)),
    ("SHA256SUMS", |p| flip(&p.join("SHA256SUMS"), 70)),
    ("no SHA256SUMS", |p| {
        fs::remove_file(p.join("SHA256SUMS")).unwrap();
    }),
];

#[test]
fn every_damage_is_repaired_from_every_source() {
    let fixture = Fixture::make();
    for codec in ["raw", "zstd", "bf16-rans"] {
        for (number, (name, damage)) in DAMAGES.iter().enumerate() {
            // the checkpoint, the same codec and another one in turn: all of them for some
            let others = [tiny_full(), fixture.whole(codec), fixture.whole("zstd")];
            let pack = fixture.copy(codec);
            damage(&pack);
            let run = repair(&pack, &others[number % others.len()]).ok();
            assert_same(&pack, &fixture.whole(codec));
            fixture.assert_clean();
            let none = run.json()["repaired"].as_array().unwrap().is_empty();
            assert_eq!(none, *name == "nothing", "{name}: {run}");
        }
    }
}

#[test]
fn only_what_is_damaged_is_taken_and_written() {
    let fixture = Fixture::make();
    let pack = fixture.copy("bf16-rans");
    let file = pack.join("packs/thinker.text.experts.01.safetensors");
    let document = manifest(&pack);
    let segments = document["segments"].as_array().unwrap();
    let segment = segments
        .iter()
        .find(|s| s["id"] == "thinker.text.layers.1.experts.3")
        .unwrap();
    flip(&file, segment["offset"].as_i64().unwrap() + 100);
    let run = repair(&pack, &tiny_full()).ok().json();
    let repaired = run["repaired"].as_array().unwrap();
    assert_eq!(repaired.len(), 1);
    assert_eq!(repaired[0]["damage"], "wrong_bytes");
    assert_eq!(repaired[0]["segments"], serde_json::json!([segment["id"]]));
    assert_same(&pack, &fixture.whole("bf16-rans"));
    segpack!["verify", &pack, "--sums", "--against", tiny_full()].ok();
}

#[cfg(unix)]
#[test]
fn sound_files_are_the_ones_that_were_there() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::make();
    let pack = fixture.copy("raw");
    let inode = |file: &str| pack.join(file).metadata().unwrap().ino();
    let kept = [
        "packs/thinker.text.safetensors",
        "source/config.json",
        "manifest.json",
    ];
    let before = kept.map(inode);
    flip(&pack.join("packs/code2wav.safetensors"), -3);
    repair(&pack, &tiny_full()).ok();
    assert_eq!(kept.map(inode), before);
}

#[cfg(unix)]
#[test]
fn a_link_in_a_files_place_is_replaced_and_not_followed() {
    let fixture = Fixture::make();
    let pack = fixture.copy("raw");
    let outside = fixture.folder.path().join("outside");
    let file = pack.join("packs/code2wav.safetensors");
    fs::copy(&file, &outside).unwrap();
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink(&outside, &file).unwrap();
    let before = fs::read(&outside).unwrap();
    let run = repair(&pack, &tiny_full()).ok().json();
    assert_eq!(run["repaired"][0]["damage"], "not_a_file");
    assert_same(&pack, &fixture.whole("raw"));
    assert!(!file.is_symlink() && fs::read(&outside).unwrap() == before);
}

/// A pack that cannot be repaired is left as it was, and nothing beside it.
fn refused(fixture: &Fixture, pack: &Path, from: &Path, status: i32, words: &[&str]) {
    let before = contents(pack);
    repair(pack, from).exits(status).says(words);
    assert!(contents(pack) == before, "{words:?}");
    fixture.assert_clean();
}

#[test]
fn a_source_that_is_another_one_is_refused_and_nothing_changes() {
    let fixture = Fixture::make();
    let mut tiny = Tiny::full();
    let name = "thinker.model.layers.1.mlp.experts.3.up_proj.weight";
    tiny.tensor(name).bytes[5] ^= 1;
    let other = tiny.write(&fixture.folder.path().join("other"));
    let other_pack = fixture.folder.path().join("other-pack");
    segpack!["pack", &other, "-o", &other_pack].ok();
    tiny.remove(name);
    let lacking = tiny.write(&fixture.folder.path().join("lacking"));

    let pack = fixture.copy("zstd");
    let document = manifest(&pack);
    let segments = document["segments"].as_array().unwrap();
    let id = "thinker.text.layers.1.experts.3";
    let segment = segments.iter().find(|s| s["id"] == id).unwrap();
    let file = pack.join(segment["pack"].as_str().unwrap());
    flip(&file, segment["offset"].as_i64().unwrap());
    for from in [&other, &other_pack] {
        refused(&fixture, &pack, from, 3, &["differs from checkpoint", name]);
    }
    refused(&fixture, &pack, &lacking, 3, &["not in checkpoint", name]);
    refused(
        &fixture,
        &pack,
        &pack,
        3,
        &["cannot be repaired from itself"],
    );
    let nothing = fixture.folder.path().join("nothing");
    refused(&fixture, &pack, &nothing, 1, &["no such file"]);

    // what is not damaged may differ: it is not taken
    flip(&file, segment["offset"].as_i64().unwrap());
    flip(&pack.join("packs/code2wav.safetensors"), -3);
    repair(&pack, &other).ok();
    assert_same(&pack, &fixture.whole("zstd"));

    fs::write(pack.join("packs/mine.txt"), "keep me").unwrap();
    refused(
        &fixture,
        &pack,
        &tiny_full(),
        3,
        &["packs/mine.txt", "unlisted file"],
    );
}

#[test]
fn a_damaged_manifest_is_taken_only_from_a_pack_that_is_proven_to_have_it() {
    let fixture = Fixture::make();
    let damages: [fn(&Path); 4] = [
        |p| flip(&p.join("manifest.json"), 1),
        |p| flip(&p.join("manifest.json"), -200),
        |p| resize(&p.join("manifest.json"), -10),
        |p| fs::remove_file(p.join("manifest.json")).unwrap(),
    ];
    for damage in damages {
        let pack = fixture.copy("zstd");
        damage(&pack);
        flip(&pack.join("packs/code2wav.safetensors"), -3);
        let words = &["no copy of it is known to be right"];
        refused(&fixture, &pack, &tiny_full(), 3, words);
        refused(&fixture, &pack, &fixture.whole("raw"), 3, words);
        repair(&pack, &fixture.whole("zstd")).ok();
        assert_same(&pack, &fixture.whole("zstd"));
    }
    // a manifest that was changed together with SHA256SUMS is found by who knows the digest
    let pack = fixture.copy("zstd");
    let identity = segpack!["info", &pack, "--json"].ok().json()["manifest_sha256"].clone();
    let identity = identity.as_str().unwrap().to_owned();
    edit_manifest(&pack, |m| m["generator"] = "segpack 0.0.1".into());
    let with = |from: &Path| {
        segpack![
            "repair",
            &pack,
            "--from",
            from,
            "--manifest-sha256",
            &identity
        ]
    };
    with(&tiny_full()).exits(3).says(&["no copy of it"]);
    with(&fixture.whole("zstd")).ok();
    assert_same(&pack, &fixture.whole("zstd"));
}

/// Whatever moment a run is killed at, its pack is the damaged or the repaired one, and another run
/// repairs it.
fn kill_after(fixture: &Fixture, milliseconds: &[u64]) -> BTreeMap<&'static str, usize> {
    let whole = contents(&fixture.whole("bf16-rans"));
    let mut seen = BTreeMap::new();
    for wait in milliseconds {
        let pack = fixture.copy("bf16-rans");
        for file in ["thinker.text", "thinker.text.experts.01", "code2wav"] {
            flip(&pack.join(format!("packs/{file}.safetensors")), -3);
        }
        let damaged = contents(&pack);
        let arguments = [
            "repair".into(),
            (&pack).into(),
            "--from".into(),
            tiny_full().into(),
        ];
        let mut child = crate::support::cli::start(&arguments);
        std::thread::sleep(std::time::Duration::from_micros(*wait * 100));
        child.kill().unwrap();
        child.wait().unwrap();
        let now = contents(&pack);
        assert!(now == damaged || now == whole, "after {wait}");
        *seen
            .entry(if now == whole { "repaired" } else { "damaged" })
            .or_default() += 1;
        repair(&pack, &tiny_full()).ok();
        assert_same(&pack, &fixture.whole("bf16-rans"));
        fixture.assert_clean();
    }
    seen
}

#[cfg(unix)]
#[test]
fn a_killed_repair_leaves_the_damaged_or_the_repaired_pack() {
    kill_after(&Fixture::make(), &[20, 120, 180, 240, 300, 400]);
}

#[cfg(unix)]
#[test]
#[ignore = "kills at every tenth of a millisecond"]
fn a_repair_killed_at_every_moment() {
    let moments: Vec<u64> = (0..500).collect();
    let seen = kill_after(&Fixture::make(), &moments);
    println!("{seen:?}");
}

/// Harm to one file, at a place that a number says.
fn harm(path: &Path, kind: u64, place: u64) -> &'static str {
    let length = fs::metadata(path).map_or(0, |m| m.len());
    if length == 0 {
        return "nothing";
    }
    let at = i64::try_from(place % length).unwrap();
    match kind % 5 {
        0 => flip(path, at),
        1 => resize(path, -(at.max(1))),
        2 => resize(path, at.max(1)),
        3 => fs::remove_file(path).unwrap(),
        _ => {
            let mut bytes = fs::read(path).unwrap();
            let from = usize::try_from(at).unwrap();
            let to = (from + 5000).min(bytes.len());
            bytes[from..to].fill(0);
            fs::write(path, bytes).unwrap();
        }
    }
    ["a bit", "cut", "longer", "removed", "zeroed"][usize::try_from(kind % 5).unwrap()]
}

/// Random harm to up to four files, repaired from a random source.
fn random_damage(rounds: u64) -> BTreeMap<&'static str, usize> {
    let fixture = Fixture::make();
    let mut random = Random(20_261_128);
    let mut tried = BTreeMap::new();
    for _ in 0..rounds {
        let codec = ["raw", "zstd", "bf16-rans"][usize::try_from(random.next() % 3).unwrap()];
        let pack = fixture.copy(codec);
        let document = manifest(&pack);
        let packs = document["packs"].as_array().unwrap().iter();
        let mut files: Vec<&str> = packs.map(|p| p["path"].as_str().unwrap()).collect();
        let kept = document["source_files"].as_array().unwrap().iter();
        files.extend(kept.map(|f| f["stored_as"].as_str().unwrap()));
        files.push("SHA256SUMS");
        for _ in 0..=random.next() % 4 {
            let file = files[usize::try_from(random.next() % files.len() as u64).unwrap()];
            let kind = harm(&pack.join(file), random.next(), random.next());
            *tried.entry(kind).or_default() += 1;
        }
        let sources = [
            tiny_full(),
            fixture.whole("raw"),
            fixture.whole("zstd"),
            fixture.whole("bf16-rans"),
        ];
        repair(&pack, &sources[usize::try_from(random.next() % 4).unwrap()]).ok();
        assert_same(&pack, &fixture.whole(codec));
    }
    tried
}

#[test]
fn random_damage_is_repaired() {
    random_damage(12);
}

#[test]
#[ignore = "five hundred repairs"]
fn much_random_damage_is_repaired() {
    println!("{:?}", random_damage(500));
}
