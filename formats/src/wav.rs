//! WAV: a header, then one channel of samples.
//!
//! RIFF as Microsoft and IBM defined it in 1991, `fmt ` chunks of the formats 1 (PCM) and 3 (IEEE
//! float; with a `fact` chunk, as the 1994 revision wants it). Nothing is written twice, so the
//! header can go down a pipe, before anybody knows how much sound will follow.

/// How samples are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleFormat {
    /// 16-bit integers: ⌊32768 · x⌋, clipped.
    Pcm16,
    /// 32-bit floats.
    Float32,
}

impl SampleFormat {
    /// Bytes of a sample.
    #[must_use]
    pub fn width(self) -> u16 {
        match self {
            Self::Pcm16 => 2,
            Self::Float32 => 4,
        }
    }

    /// Adds samples in [-1, 1] as they are stored, little-endian.
    pub fn encode(self, samples: &[f32], to: &mut Vec<u8>) {
        match self {
            Self::Pcm16 => to.extend(samples.iter().flat_map(|x| pcm16(*x).to_le_bytes())),
            Self::Float32 => to.extend(samples.iter().flat_map(|x| x.to_le_bytes())),
        }
    }
}

/// ⌊32768 · x⌋, clipped to 16 bits, as libsndfile writes it; 0 for NaN.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "casts of floats clip")]
pub fn pcm16(x: f32) -> i16 {
    (x * 32768.0).floor() as i16
}

/// What stands for a length that is not known.
const UNKNOWN: u32 = u32::MAX;

/// The header of so many samples of one channel; of an unknown number where there is none, as those
/// who write into pipes do it. `None` where the file would be longer than the format can say.
#[must_use]
pub fn header(format: SampleFormat, sample_rate: u32, samples: Option<u64>) -> Option<Vec<u8>> {
    let width = format.width();
    let mut chunks = b"WAVEfmt ".to_vec();
    // tag, channels, samples and bytes of a second, bytes of a sample, bits of a sample
    let (tag, length): (u16, u32) = match format {
        SampleFormat::Pcm16 => (1, 16),
        SampleFormat::Float32 => (3, 18),
    };
    chunks.extend(length.to_le_bytes());
    chunks.extend([tag, 1].into_iter().flat_map(u16::to_le_bytes));
    let per_second = sample_rate.checked_mul(u32::from(width))?;
    chunks.extend(
        [sample_rate, per_second]
            .into_iter()
            .flat_map(u32::to_le_bytes),
    );
    chunks.extend([width, 8 * width].into_iter().flat_map(u16::to_le_bytes));
    let data = match samples {
        None => UNKNOWN,
        Some(samples) => u32::try_from(samples.checked_mul(u64::from(width))?).ok()?,
    };
    if format == SampleFormat::Float32 {
        chunks.extend(0_u16.to_le_bytes());
        chunks.extend(b"fact");
        let count = samples.map_or(Some(UNKNOWN), |samples| u32::try_from(samples).ok())?;
        chunks.extend([4, count].into_iter().flat_map(u32::to_le_bytes));
    }
    chunks.extend(b"data");
    chunks.extend(data.to_le_bytes());
    let all = match samples {
        None => UNKNOWN,
        Some(_) => u32::try_from(chunks.len()).ok()?.checked_add(data)?,
    };
    Some([b"RIFF".as_slice(), &all.to_le_bytes(), &chunks].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_rounded_down_and_clipped() {
        let cases = [
            (0.0, 0),
            (1.0, 32767),
            (-1.0, -32768),
            (0.5, 16384),
            (-1e-9, -1),
            (1e-9, 0),
            (7.0, 32767),
            (f32::NAN, 0),
        ];
        for (x, wanted) in cases {
            assert_eq!(pcm16(x), wanted, "{x}");
        }
    }

    #[test]
    fn headers_are_those_of_the_format() {
        // the module wave of Python 3.11, 3 samples of 2 bytes at 24 kHz
        let wanted = b"RIFF\x2a\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\xc0]\0\0\x80\xbb\0\0\x02\0\x10\0data\x06\0\0\0";
        let pcm = header(SampleFormat::Pcm16, 24_000, Some(3)).unwrap();
        assert_eq!(pcm, wanted);
        let float = header(SampleFormat::Float32, 24_000, Some(3)).unwrap();
        assert_eq!((float.len(), &float[20..22]), (58, &[3, 0][..]));
        assert_eq!(&float[46..50], 3_u32.to_le_bytes());
        assert_eq!(&float[4..8], (50_u32 + 12).to_le_bytes());
        let endless = header(SampleFormat::Pcm16, 24_000, None).unwrap();
        assert_eq!(
            (&endless[4..8], &endless[40..]),
            (&[255; 4][..], &[255; 4][..])
        );
    }

    #[test]
    fn more_than_four_gibibytes_are_refused() {
        assert!(header(SampleFormat::Float32, 24_000, Some(1 << 30)).is_none());
        assert!(header(SampleFormat::Pcm16, 24_000, Some(u64::MAX)).is_none());
        assert!(header(SampleFormat::Pcm16, 24_000, Some((1 << 31) - 100)).is_some());
    }
}
