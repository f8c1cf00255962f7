//! Values for tests: like weights, and unlike them.

#![expect(clippy::cast_possible_truncation, reason = "bits of random numbers")]

/// Sebastiano Vigna's splitmix64.
pub(crate) struct Noise(pub u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// About normal: the sum of twelve even ones.
    fn normal(&mut self) -> f32 {
        let sum: u64 = (0..12).map(|_| self.next() >> 48).sum();
        (sum as f32 - 6.0 * 65_536.0) / 65_536.0
    }
}

/// The bf16 value below a float, without rounding.
pub(crate) fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

fn bytes(values: impl Iterator<Item = u16>) -> Vec<u8> {
    values.flat_map(u16::to_le_bytes).collect()
}

/// Weights of a trained matrix, about.
pub(crate) fn weights(count: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    bytes((0..count).map(|_| bf16(noise.normal() * 0.02)))
}

/// Values by their position and a random number.
fn make_values(
    count: usize,
    noise: &mut Noise,
    value: &mut dyn FnMut(usize, u64) -> u16,
) -> Vec<u8> {
    bytes((0..count).map(|i| value(i, noise.next())))
}

/// Named values of every sort that a tensor may hold, `count` of each.
pub(crate) fn every_sort(count: usize) -> Vec<(&'static str, Vec<u8>)> {
    let mut noise = Noise(7);
    let mut make = |value: &mut dyn FnMut(usize, u64) -> u16| make_values(count, &mut noise, value);
    let special = [
        0x0000, 0x8000, 0x0001, 0x807f, 0x7f80, 0xff80, 0x7fc0, 0xffc1, 0x7f81, 0x7f7f,
    ];
    let mut noise_too = Noise(8);
    let mut weight = move || bf16(noise_too.normal() * 0.02);
    vec![
        ("weights", weights(count, 1)),
        ("noise", make(&mut |_, n| n as u16)),
        ("zeros", make(&mut |_, _| 0)),
        ("ones", make(&mut |_, _| 0x3f80)),
        ("counting", make(&mut |i, _| i as u16)),
        (
            "every second one zero",
            make(&mut |i, n| {
                if i % 2 == 0 {
                    0
                } else {
                    0x3c00 | (n as u16 & 0xff)
                }
            }),
        ),
        (
            "sparse",
            make(&mut |_, n| if n.is_multiple_of(50) { 0xbc12 } else { 0x8000 }),
        ),
        (
            "weights with outliers",
            make(&mut |_, n| {
                if n.is_multiple_of(3000) {
                    n as u16
                } else {
                    weight()
                }
            }),
        ),
        (
            "infinities, NaN, denormals",
            make(&mut |_, n| special[(n % 10) as usize]),
        ),
        (
            "all exponents alike",
            make(&mut |_, n| (n as u16 & 0x807f) | (((n >> 32) % 256) as u16 * 128)),
        ),
        ("one symbol", make(&mut |_, n| 0x3f80 | (n as u16 & 0x801f))),
        (
            "two far symbols",
            make(&mut |i, n| {
                if i % 3 == 0 {
                    0x7f80
                } else {
                    0x0020 | (n as u16 & 0x1f)
                }
            }),
        ),
    ]
}
