//! Files that are damaged, or lie: an error, never a panic, and no memory for what they promise.

use super::*;
use crate::processing::media::testing::fixture;

const RECIPES: [MediaRecipe; 2] = [MediaRecipe::Transformers, MediaRecipe::ModelCard];
const FILES: [&str; 9] = [
    "alpha.png",
    "gray16.png",
    "palette_transparent.png",
    "tiny.png",
    "exif6.jpg",
    "progressive.jpg",
    "lossless.webp",
    "lossy.webp",
    "still.gif",
];

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture("media").join(name)).unwrap()
}

/// The messages of an error and its causes.
fn message(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// A PNG file of one colour, with the checksums of its chunks right.
fn png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [
        (b"IHDR", header.as_slice()),
        (b"IDAT", data),
        (b"IEND", &[]),
    ] {
        file.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        file.extend(kind);
        file.extend(body);
        let mut summed = kind.to_vec();
        summed.extend(body);
        file.extend(crc32(&summed).to_be_bytes());
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(!0, byte)
}

/// The same numbers on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % end
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_at_every_length() {
    for name in FILES {
        let whole = read(name);
        for part in 0..40 {
            let length = whole.len() * part / 40;
            let error = decode(&whole[..length], MediaRecipe::Transformers).unwrap_err();
            assert!(!message(&error).is_empty(), "{name}, {length} bytes");
        }
    }
    let whole = read("exif6.jpg");
    let error = decode(&whole[..whole.len() - 2], MediaRecipe::Transformers).unwrap_err();
    assert!(matches!(error, ImageError::Truncated { .. }), "{error}");
}

/// A smoke run of what `cargo fuzz` would do: each decoder, through our entry point.
#[test]
fn changed_bytes_are_an_error_or_other_pixels() {
    let mut numbers = Numbers(0x5eed);
    for name in FILES {
        let whole = read(name);
        for round in 0..60 {
            let mut bytes = whole.clone();
            for _ in 0..=numbers.below(8) {
                // headers are more often hit than a few bytes among thousands
                let end = if round % 2 == 0 {
                    64.min(bytes.len())
                } else {
                    bytes.len()
                };
                let place = numbers.below(end);
                bytes[place] = u8::try_from(numbers.below(256)).unwrap();
            }
            for recipe in RECIPES {
                if let Ok(picture) = decode(&bytes, recipe) {
                    let pixels = picture.width * picture.height;
                    assert_eq!(picture.values.len(), pixels * 3, "{name}, round {round}");
                }
            }
        }
    }
}

#[test]
fn headers_that_promise_too_much_are_refused_before_memory_is_taken() {
    let sizes = [
        (60_000, 60_000),
        (u32::MAX >> 1, 1),
        (1, u32::MAX >> 1),
        (1 << 20, 1 << 20),
    ];
    for (width, height) in sizes {
        let error = decode(&png(width, height, &[]), MediaRecipe::Transformers).unwrap_err();
        let text = message(&error);
        assert!(text.contains("limit") || text.contains("damaged"), "{text}");
    }
    // a JPEG of 65,500 x 65,500
    let mut jpeg = read("exif6.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
    let error = decode(&jpeg, MediaRecipe::Transformers).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    // a GIF of 65,535 x 65,535
    let mut gif = read("still.gif");
    gif[6..10].fill(0xff);
    let error = decode(&gif, MediaRecipe::Transformers).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[test]
fn what_is_no_image_is_named() {
    let decode = |bytes: &[u8]| decode(bytes, MediaRecipe::Transformers).unwrap_err();
    assert!(decode(b"").to_string().contains("empty"));
    assert!(decode(b"<html><body>404").to_string().contains("<html><b"));
    assert!(
        decode(b"\0\0\0\x18ftypheic\0\0\0\0")
            .to_string()
            .contains("HEIC")
    );
    assert!(
        decode(b"\0\0\0\x18ftypavif\0\0\0\0")
            .to_string()
            .contains("AVIF")
    );
    // a GIF file of a comment and no frames
    let none = [&read("still.gif")[..10], b"\0\0\0!\xfe\0;"].concat();
    assert!(matches!(decode(&none), ImageError::NoFrames { .. }));
    let device = std::path::Path::new("/dev/zero");
    if device.exists() {
        assert!(matches!(
            read_file(device),
            Err(ImageError::NotImage { .. })
        ));
    }
}

fn limits(min: u64, max: u64) -> PartLimits {
    PartLimits {
        min_pixels: Some(min),
        max_pixels: Some(max),
        resized: None,
    }
}

#[test]
fn sizes_are_those_of_the_official_rule() {
    let settings = crate::processing::image::tests::settings_with(3136, 12_845_056);
    let size = |width, height| processor_size(width, height, &settings);
    assert_eq!(size(80, 80).unwrap(), (64, 64));
    assert_eq!(size(7, 5).unwrap(), (96, 64));
    assert_eq!(size(3000, 15).unwrap(), (800, 32));
    assert_eq!(size(10_000, 10_000).unwrap(), (3552, 3552));
    // exactly 200 times is allowed
    assert!(size(200, 1).is_ok());
    assert!(matches!(size(201, 1), Err(ImageError::Ratio { .. })));
    assert!(matches!(size(1, 4000), Err(ImageError::Ratio { .. })));
    assert!(matches!(size(0, 5), Err(ImageError::Empty { .. })));

    assert_eq!(
        model_card_size(96, 72, &limits(3136, 1 << 20)).unwrap(),
        (84, 84)
    );
    // limits that contradict each other, or leave nothing, or want more than is allowed
    for (min, max) in [(10_000, 100), (1, 100), (1 << 60, u64::MAX)] {
        assert!(
            model_card_size(100, 100, &limits(min, max)).is_err(),
            "{min} {max}"
        );
    }
}
