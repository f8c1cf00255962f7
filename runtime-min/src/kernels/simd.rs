//! What a kernel needs of an instruction set. Kernels are written once, over this trait.

/// Values of a vector. All instruction sets use the same number, so that sums are formed in the
/// same order on all.
pub(crate) const LANES: usize = 16;

/// One vector in memory, aligned to a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [f32; LANES]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; LANES]);
}

/// The values of some lines.
#[expect(unsafe_code, reason = "a line is an array of values, without padding")]
pub(crate) fn values(lines: &[Line]) -> &[f32] {
    const { assert!(size_of::<Line>() == size_of::<[f32; LANES]>()) };
    // SAFETY: `Line` is `repr(C)` over an array and as large as it
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LANES) }
}

/// The values of some lines.
#[expect(unsafe_code, reason = "a line is an array of values, without padding")]
pub(crate) fn values_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as in `values`
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

/// The bytes of some values; little-endian, as every machine is that this is built for.
#[expect(unsafe_code, reason = "values are bytes without padding")]
pub(crate) fn bytes(values: &[f32]) -> &[u8] {
    const {
        assert!(
            cfg!(target_endian = "little"),
            "weights are read as little-endian words"
        );
    };
    // SAFETY: every byte of an f32 is initialised, and bytes need no alignment
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// Work that is compiled for every instruction set.
pub(crate) trait Work {
    /// What comes out.
    type Out;

    /// Does it. Implementations are `#[inline(always)]`, and so is all that computes in them;
    /// nothing does so in a closure. For only what is inlined into the entry of an instruction set
    /// is compiled for it.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// An instruction set: vectors of [`LANES`] f32. A value of the type proves that the processor has
/// it.
///
/// Rounding is IEEE 754's, one per operation.
pub(crate) trait Simd: Copy + Send + Sync {
    /// A vector.
    type V: Copy;

    /// Vectors of weight rows that a tile of a matrix product spans.
    const STRIP: usize;
    /// Most tokens that a tile of a matrix product spans.
    const TOKENS: usize;
    /// Rows of weights, one of 1, 2 and 4, and most tokens whose sums are formed side by side where
    /// the lanes are columns.
    const BESIDE: (usize, usize);
    /// Most tokens for which that is faster than a matrix product whose lanes are rows.
    const FEW: usize;
    /// Whether [`LANES`] vectors that are transposed stay in registers, beside a tile's sums.
    const TRANSPOSED_BESIDE_SUMS: bool;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    /// The bits of a vector as they lie in memory (little-endian).
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::V;
    fn store(self, v: Self::V, to: &mut [f32; LANES]);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, with one rounding where the processor can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a > b ? a : b`: b where one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`: b where one is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even, where |v| is below 2²².
    fn round(self, v: Self::V) -> Self::V;
    /// `v · 2ⁿ`, rounded once, for whole n in [-252, 252].
    fn scale(self, v: Self::V, n: Self::V) -> Self::V;

    /// In every lane the low 16 bits, taken for a bf16 value.
    fn low(self, v: Self::V) -> Self::V;
    /// In every lane the high 16 bits, taken for a bf16 value.
    fn high(self, v: Self::V) -> Self::V;
    /// In every lane the high 16 bits of `even`, then those of `odd`: the pair of bf16 values of which
    /// [`low`](Self::low) and [`high`](Self::high) give one each. For sets with instructions for bf16.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pair(self, even: Self::V, odd: Self::V) -> Self::V {
        let (mut low, mut high) = (Line::ZERO, Line::ZERO);
        self.store(even, &mut low.0);
        self.store(odd, &mut high.0);
        for (low, high) in low.0.iter_mut().zip(&high.0) {
            *low = pair_of(*low, *high);
        }
        self.load(&low.0)
    }
    /// In every lane `c` plus the products of a pair of bf16 values with another: first that of the
    /// high ones, then that of the low ones, each added with one rounding. Where it is one instruction
    /// (`VDPBF16PS`), values and sums below 2⁻¹²⁶ are zero.
    #[inline(always)]
    fn dot_pairs(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        two_products(self, a, b, c)
    }
    /// Lane i of row j becomes lane j of row i.
    fn transpose(self, rows: [Self::V; LANES]) -> [Self::V; LANES];

    /// Starts to read a cache line into the second-level cache. Any address will do.
    fn prefetch(self, address: *const u8);

    /// Lanes 0 to 15, added pairwise: i and i + 8, then i and i + 4, and so on.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut lanes = Line::ZERO.0;
        self.store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The highest lane that is not NaN.
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        let mut lanes = Line::ZERO.0;
        self.store(v, &mut lanes);
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] = if lanes[i + width] > lanes[i] {
                    lanes[i + width]
                } else {
                    lanes[i]
                };
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// The upper halves of two values, as one: one lane of `Simd::pair`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn pair_of(even: f32, odd: f32) -> f32 {
    f32::from_bits(even.to_bits() >> 16 | odd.to_bits() & 0xffff_0000)
}

/// [`Simd::dot_pairs`] in two steps.
#[inline(always)]
pub(super) fn two_products<S: Simd>(s: S, a: S::V, b: S::V, c: S::V) -> S::V {
    let c = s.mul_add(s.high(a), s.high(b), c);
    s.mul_add(s.low(a), s.low(b), c)
}
